"""The official Node SDK as a customer: tests/clients/node/client.mjs, beside its node_modules."""

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.tools import tool

HERE = Path(__file__).parents[1] / "clients" / "node"
INSTALLED = Path(__file__).parents[2] / ".artifacts" / "node"
INSTALL_SECONDS_MAX = 180
RUN_SECONDS_MAX = 60
HOW = "Debian and Ubuntu have it in their packages nodejs and npm; version 20 or newer"


class NodeClient:
    """Plays scenarios by their names."""

    def __init__(self, script: Path) -> None:
        self._script = script

    async def play(self, *scenarios: str, base_url: str, key: str, **environment: str) -> dict[str, Any]:
        """What each scenario printed, in one run of the program. Raises TimeoutError."""
        process = await asyncio.create_subprocess_exec(
            *(tool("node", HOW), str(self._script), *scenarios),
            env={**os.environ, "BASE_URL": base_url, "API_KEY": key, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(RUN_SECONDS_MAX):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()
        lines: list[Mapping[str, Any]] = [orjson.loads(line) for line in output.splitlines()]
        assert [line["scenario"] for line in lines] == list(scenarios)
        return {line["scenario"]: line.get("ok", line.get("error")) for line in lines}


@pytest.fixture(scope="session")
def node() -> NodeClient:
    """The client, its packages installed once per lock file, outside of the tree."""
    npm, _ = tool("npm", HOW), tool("node", HOW)
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = INSTALLED / "installed"
    wanted = hashlib.sha256(lock).hexdigest()
    INSTALLED.mkdir(parents=True, exist_ok=True)
    if not stamp.exists() or stamp.read_text() != wanted:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, INSTALLED / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(INSTALLED)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
        assert done.returncode == 0, f"npm ci failed: {done.stderr}"
        stamp.write_text(wanted)
    # A module is looked up from where the importing file lies.
    for module in HERE.glob("*.mjs"):
        shutil.copy(module, INSTALLED / module.name)
    return NodeClient(INSTALLED / "client.mjs")
