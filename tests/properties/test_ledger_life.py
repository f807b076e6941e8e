"""The random life of a ledger: whatever is asked, in whatever order and batches, the database does what one page of
Python does (tests/support/ledger_model.py), and the books balance.

`FAREBOX_LEDGER_EXAMPLES=5000 pytest tests/properties/test_ledger_life.py` lives longer.
"""

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.ledger_life import Database, live
from tests.support.postgres import ScratchPostgres

EXAMPLES = int(os.environ.get("FAREBOX_LEDGER_EXAMPLES", "50"))


@pytest.fixture
def database(scratch: ScratchPostgres) -> Iterator[Database]:
    dsn = asyncio.run(scratch.clone("ledger_life"))
    with Database(dsn) as opened:
        yield opened
    asyncio.run(scratch.drop("ledger_life"))


def test_the_ledger_lives_as_its_model(database: Database) -> None:
    live(database, settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None))
    assert database.outcomes_missed() == set(), "a life in which these never happen proves too little"
