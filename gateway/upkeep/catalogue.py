"""Keeps the shelf of models and prices as the database has it. A future price comes into force by the clock alone."""

from collections.abc import Callable, Mapping, Sequence

from gateway.db import prices
from gateway.db.pool import Database, LedgerAway
from gateway.request.admit import Shelf
from gateway.settings import UpstreamSettings


class CatalogueRefresh:
    """Reads models and prices in force, and hands over a new shelf."""

    name = "catalogue"

    def __init__(
        self,
        database: Database,
        upstreams: Sequence[UpstreamSettings],
        aliases: Mapping[str, str],
        put: Callable[[Shelf], None],
        *,
        interval_seconds: float = 30.0,
    ) -> None:
        self._database = database
        self.upstreams = upstreams
        self._aliases = aliases
        self._put = put
        self.interval_seconds = interval_seconds

    async def serve(self, upstreams: Sequence[UpstreamSettings], aliases: Mapping[str, str]) -> None:
        """From here on these upstreams and aliases. Raises LedgerAway: all stays as it was."""
        before = self.upstreams, self._aliases
        self.upstreams, self._aliases = upstreams, aliases
        try:
            await self.run_once()
        except LedgerAway:
            self.upstreams, self._aliases = before
            raise

    async def run_once(self) -> None:
        """Raises LedgerAway: the shelf stays as it was."""
        models = await prices.load_models(self._database)
        current = await prices.current(self._database)
        self._put(Shelf(models, current, self.upstreams, self._aliases))
