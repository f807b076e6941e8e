"""Paths of the OpenAI API that nothing here meters: refused by name, rather than as unknown. Pure.

Each costs money at another time than when it is called, or leads past the gateway, or is the operator's own business;
an operator may pass some of them on all the same (`[[allow]]`).
"""

import re

# One segment of a path as it was sent: nothing encoded, no dots alone.
SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._:~-]{1,256}"
_SEGMENT = re.compile(SEGMENT)
_SEGMENTS_MAX = 16
_SHOWN_CHARS_MAX = 200
# First segments below the prefix -> why what lies there is not metered.
_LATER = "what it costs is not known when it is called"
_PAST = "it leads past this gateway"
_STORED = "it keeps data in an account that all callers share"
_ADMIN = "it administers the account"
UNMETERED = {
    "agents": _LATER,
    "assistants": _LATER,
    "batches": _LATER,
    "chatkit": _LATER,
    "containers": _LATER,
    "conversations": _STORED,
    "edits": _LATER,
    "engines": _LATER,
    "evals": _LATER,
    "files": _STORED,
    "fine-tunes": _LATER,
    "fine_tuning": _LATER,
    "live": _PAST,
    "organization": _ADMIN,
    "organizations": _ADMIN,
    "projects": _ADMIN,
    "realtime": _PAST,
    "responses": _STORED,
    "skills": _STORED,
    "threads": _LATER,
    "uploads": _STORED,
    "vaults": _STORED,
    "vector_stores": _LATER,
    "videos": _LATER,
    "webhook_endpoints": _ADMIN,
    "audio/voice_consents": _STORED,
    "audio/voices": _STORED,
    "chat/completions": _STORED,
    "dashboard/billing": _ADMIN,
}


def why_unmetered(path: str) -> str | None:
    """Why nothing meters this path, below the prefix; None for a path that the API does not have."""
    segments = path.split("/")[1:]
    if not 0 < len(segments) <= _SEGMENTS_MAX or not all(map(_SEGMENT.fullmatch, segments)):
        return None
    return UNMETERED.get(segments[0]) or UNMETERED.get("/".join(segments[:2]))


def shown(path: str) -> str:
    """A caller's path as a message may name it."""
    plain = "".join(char if " " < char <= "~" else "?" for char in path[: _SHOWN_CHARS_MAX + 1])
    return plain if len(plain) <= _SHOWN_CHARS_MAX else plain[:_SHOWN_CHARS_MAX] + "…"
