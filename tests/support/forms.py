"""Multipart forms, and files to send in them: sound of a known length, made by hand."""

import io
from typing import NamedTuple

from gateway.core.multipart import Form, FormScanner

BOUNDARY = "----form-boundary-7MA4YWxk"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


class File(NamedTuple):
    """A file of a form."""

    name: str
    content: bytes
    filename: str = "upload"
    content_type: str = "application/octet-stream"


def form_bytes(*items: "File | tuple[str, str]") -> bytes:
    """A form as the Python SDK writes it."""
    out = io.BytesIO()
    for item in items:
        out.write(f"--{BOUNDARY}\r\n".encode())
        if isinstance(item, File):
            head = f'Content-Disposition: form-data; name="{item.name}"; filename="{item.filename}"'
            out.write(f"{head}\r\nContent-Type: {item.content_type}\r\n\r\n".encode() + item.content + b"\r\n")
        else:
            out.write(f'Content-Disposition: form-data; name="{item[0]}"\r\n\r\n{item[1]}\r\n'.encode())
    out.write(f"--{BOUNDARY}--\r\n".encode())
    return out.getvalue()


def form_of(*items: "File | tuple[str, str]") -> Form:
    """The same, read."""
    body = form_bytes(*items)
    scanner = FormScanner(BOUNDARY.encode())
    scanner.feed(body)
    return Form(scanner.finish(), len(body), lambda start, size: body[start : start + size])
