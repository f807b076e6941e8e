"""Programs that some tests run and that pip does not bring: used where they are, demanded in CI, else skipped aloud."""

import os
import shutil

import pytest


def tool(name: str, how_to_get_it: str) -> str:
    """The path of a program. Without it the test is skipped, or in CI (CI=true) fails, saying how to get it."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed: {how_to_get_it}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path
