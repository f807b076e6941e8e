"""Reading requests that come as multipart forms: what every endpoint that takes files has in common. Pure.

As in JSON, a field that decides the cost must be there once and spelled as the API spells it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.core.multipart import Form, Part
from gateway.endpoints.endpoint import InvalidRequest

_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0", ""})


class FormNames(NamedTuple):
    """The fields that decide the cost, and the files, by the names that they may have: `image` or `image[]`."""

    fields: frozenset[str]
    files: frozenset[str]


def read_form_parts(form: Form, names: FormNames) -> tuple[dict[str, str], list[Part]]:
    """(the deciding fields that are given, the files). Raises InvalidRequest."""
    fields: dict[str, str] = {}
    files: list[Part] = []
    bases = {name.partition("[")[0] for name in names.fields | names.files}
    for part in form.parts:
        if part.name in names.files:
            if part.filename is None:
                raise InvalidRequest(f"{part.name!r} must be a file, with a filename.", param=part.name)
            files.append(part)
        elif part.name in names.fields:
            if part.name in fields:
                raise InvalidRequest(f"{part.name!r} is given twice.", param=part.name, code="duplicate_member")
            if part.value is None:
                raise InvalidRequest(f"{part.name!r} must be a field, without a filename.", param=part.name)
            fields[part.name] = text_of(part)
        elif (base := part.name.partition("[")[0].strip().casefold()) in bases:
            # Some parsers take `model[]` for `model`, and some do not tell case apart.
            raise InvalidRequest(f"{part.name!r} must be spelled {base!r}.", param=base, code="duplicate_member")
        elif part.name == "_charset_":
            raise InvalidRequest("Forms are read in UTF-8.", param="_charset_")
    return fields, files


def text_of(part: Part) -> str:
    """The text of a field. Raises InvalidRequest."""
    try:
        return (part.value or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{part.name!r} must be in UTF-8.", param=part.name) from None


def form_whole(fields: Mapping[str, str], name: str, maximum: int) -> int | None:
    """A whole number from 1 to `maximum`, or None where the field is absent. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= maximum):
        raise InvalidRequest(f"{name!r} must be a whole number from 1 to {maximum}.", param=name)
    return int(value)


def form_flag(fields: Mapping[str, str], name: str) -> bool:
    """True or false; false where the field is absent. Raises InvalidRequest."""
    value = fields.get(name, "").lower()
    if value not in _TRUE and value not in _FALSE:
        raise InvalidRequest(f"{name!r} must be true or false.", param=name)
    return value in _TRUE
