"""Keeps the embedded PostgreSQL running: should its server die under a gateway, it is started again."""

import asyncio

from gateway.db.embedded import EmbeddedPostgres


class KeepDatabase:
    """Looks whether the server lives. PostgreSQL recovers by itself from its log, so nothing acknowledged is lost."""

    name = "keep_database"

    def __init__(self, server: EmbeddedPostgres, *, interval_seconds: float = 1.0) -> None:
        self._server = server
        self.interval_seconds = interval_seconds

    async def run_once(self) -> bool:
        """Whether the server had to be started. Raises EmbeddedPostgresFailed."""
        if await asyncio.to_thread(self._server.is_running):
            return False
        await asyncio.to_thread(self._server.start)
        return True
