"""JSON lines on standard error. Never a key, a prompt, a reply or a card: log calls pass ids, codes and counts only."""

import logging
import sys
from datetime import UTC, datetime

import orjson


class JsonFormatter(logging.Formatter):
    """One JSON object per record; `extra={"fields": {…}}` adds members, and `fields` are in every record."""

    def __init__(self, **fields: object) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            document.update(fields)
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(document, default=str).decode()


def configure(level: str, **fields: object) -> None:
    """Send everything at or above `level` to standard error, with `fields` in every record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**fields))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # aiohttp reports each malformed request with a traceback; they are counted as refusals instead.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
