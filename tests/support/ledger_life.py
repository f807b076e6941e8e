"""A Hypothesis state machine that lives one random life of a ledger beside its model."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.db.lanes import Answer, Outcome
from gateway.db.queries import queries
from tests.support.ledger_model import ModelWallet
from tests.support.ledger_operations import (
    MONEY_TABLES,
    Ledger,
    Op,
    checkpoint,
    expire,
    extend,
    hold,
    id_at,
    open_ledger,
    settle,
    void,
)

T = TypeVar("T")

# Small numbers collide: a wallet is soon empty, and the same hold is soon asked for again.
WALLETS = 2
HOLDS = 6
POSTINGS = 4
AMOUNT_MAX = 60
CREDIT = 200
VALID_SECONDS = (60, 600)
START = datetime.now(UTC)
# What a life need not reach: these have their own tests.
ELSEWHERE = {Outcome.WALLET_UNKNOWN, Outcome.HOLD_OUT_OF_RANGE}


@dataclass(frozen=True, slots=True)
class Drawn:
    """An operation without its id: the place of its hold among all wallets', two amounts, and a throw of the dice."""

    place: int
    name: str
    one: int
    two: int
    dice: int

    @property
    def is_new(self) -> bool:
        """Whether a new hold takes the place of one that has ended."""
        return self.dice % 3 > 0

    def on(self, hold_id: str) -> Op:
        """The operation."""
        seconds = VALID_SECONDS[self.dice // 3]
        if self.name == "hold":
            return hold(hold_id, max(self.one, self.two), min(self.one, self.two), seconds=seconds)
        if self.name == "checkpoint":
            return checkpoint(hold_id, self.one, seconds=seconds)
        if self.name == "extend":
            return extend(hold_id, self.one + self.two, max(self.one, self.two), seconds=seconds)
        if self.name == "settle":
            return settle(hold_id, self.one + self.two)
        return {"void": void, "expire": expire}[self.name](hold_id)


amounts = st.integers(0, AMOUNT_MAX)
wallet_numbers = st.integers(0, WALLETS - 1)


def statements(*names: str, size_min: int = 1) -> st.SearchStrategy[list[Drawn]]:
    """Several operations, each hold at most once."""
    places = st.integers(0, WALLETS * HOLDS - 1)
    drawn = st.builds(Drawn, places, st.sampled_from(names), amounts, amounts, st.integers(0, 5))
    return st.lists(drawn, min_size=size_min, max_size=8, unique_by=lambda operation: operation.place)


class Database:
    """One event loop and one connection for all the lives of a test."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._exits = AsyncExitStack()
        self.ledger: Ledger
        self.seen: set[Outcome] = set()

    def __enter__(self) -> "Database":
        self.ledger = self.run(self._exits.enter_async_context(open_ledger(self._dsn)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self._exits.aclose())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def outcomes_missed(self) -> set[Outcome]:
        """Outcomes that no life had."""
        return set(Outcome) - self.seen - ELSEWHERE


class LedgerLife(RuleBasedStateMachine):
    """Every answer, every balance after every step, every row and every invariant at the end."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._ledger = database.ledger
        self._run = database.run
        self._failed = False
        # Ids in the order of their making: a life that failed must fail again when it is lived again.
        self._ids = (id_at(START + timedelta(milliseconds=number)) for number in count())
        self._posting_ids = [next(self._ids) for _ in range(POSTINGS)]
        self._hold_ids = [next(self._ids) for _ in range(WALLETS * HOLDS)]
        # The second wallet may owe a little.
        self._wallets = {next(self._ids): ModelWallet(floor=floor) for floor in (0, 25)}
        for wallet_id, model in self._wallets.items():
            self._run(self._ledger.connection.execute(queries()["wallet_create"], wallet_id, "test", model.floor))
            self._post(wallet_id, "credit", CREDIT, next(self._ids))

    @rule(drawn=statements("hold", "settle", "void", "checkpoint", "extend", "expire"))
    def one_statement(self, drawn: list[Drawn]) -> None:
        """Some operations on one wallet or both, as one statement."""
        by_wallet: dict[str, list[Op]] = {}
        for number, (wallet_id, model) in enumerate(self._wallets.items()):
            for operation in drawn:
                place = operation.place
                if place // HOLDS != number:
                    continue
                if operation.name == "hold" and operation.is_new and self._hold_ids[place] in model.resolved:
                    self._hold_ids[place] = next(self._ids)
                by_wallet.setdefault(wallet_id, []).append(operation.on(self._hold_ids[place]))
        self._send(by_wallet)

    @rule(drawn=statements("hold", size_min=4))
    def calls_begin(self, drawn: list[Drawn]) -> None:
        """As when a gateway is busy."""
        self.one_statement(drawn)

    @rule(drawn=statements("settle", "settle", "void", "checkpoint", "extend", "extend", size_min=4))
    def calls_go_on_and_end(self, drawn: list[Drawn]) -> None:
        """The same, later: of the holds that are open."""
        open_ids = {hold_id for model in self._wallets.values() for hold_id in model.open_ids()}
        places = [place for place, hold_id in enumerate(self._hold_ids) if hold_id in open_ids]
        aimed = [replace(operation, place=place) for operation, place in zip(drawn, places, strict=False)]
        if aimed:
            self.one_statement(aimed)

    @rule(wallet=wallet_numbers, amount=st.integers(-2 * AMOUNT_MAX, AMOUNT_MAX), posting=st.integers(0, 2 * POSTINGS))
    def posting(self, wallet: int, amount: int, posting: int) -> None:
        """A credit or an adjustment, sometimes under an id that was used before."""
        posting_id = self._posting_ids[posting] if posting < POSTINGS else next(self._ids)
        if amount:
            self._post(list(self._wallets)[wallet], "credit" if amount > 0 else "adjust", amount, posting_id)

    @rule(wallet=wallet_numbers, is_suspended=st.sampled_from((True, False, False, False)))
    def status(self, wallet: int, is_suspended: bool) -> None:
        wallet_id = list(self._wallets)[wallet]
        status = "suspended" if is_suspended else "active"
        self._run(self._ledger.connection.execute(queries()["wallet_set_status"], wallet_id, status))
        self._wallets[wallet_id].suspended = is_suspended

    @rule(seconds=st.sampled_from((50, 150, 1_200)))
    def time_passes(self, seconds: int) -> None:
        """Never to just before a hold is due: the real clock moves too, a little."""
        for wallet_id, model in self._wallets.items():
            self._run(self._ledger.age(wallet_id, seconds))
            model.now += seconds

    @rule(drawn=statements("checkpoint", "extend", size_min=2))
    def a_gateway_dies(self, drawn: list[Drawn]) -> None:
        """Its holds are swept; what it had journaled is settled late."""
        self.calls_go_on_and_end(drawn)
        self.time_passes(2 * max(VALID_SECONDS))
        swept = {wallet: model.due() for wallet, model in self._wallets.items()}
        self.sweep()
        late = {
            wallet: [settle(i, n % AMOUNT_MAX) for n, i in enumerate(ids, 7)] for wallet, ids in swept.items() if ids
        }
        for _ in range(2 if late else 0):
            self._send(late)  # and a journal may be replayed twice

    @rule()
    def sweep(self) -> None:
        """What the sweep finds is what is due, and all of it goes."""
        found: dict[str, list[str]] = {}
        for row in self._run(self._ledger.connection.fetch(queries()["holds_due"], 500)):
            found.setdefault(str(row["wallet_id"]), []).append(str(row["hold_id"]))
        self._check(found == {wallet: model.due() for wallet, model in self._wallets.items() if model.due()}, found)
        if found:
            self._send({wallet: [expire(hold_id) for hold_id in hold_ids] for wallet, hold_ids in found.items()})

    @invariant()
    def funds_are_the_models(self) -> None:
        stored = self._run(self._ledger.connection.fetch(queries()["wallet_list"], None, WALLETS + 1))
        funds = [(str(row["wallet_id"]), row["balance_nanos"], row["held_nanos"]) for row in stored]
        expected = [(wallet_id, model.balance, model.held) for wallet_id, model in self._wallets.items()]
        self._check(funds == expected, f"stored {funds}, expected {expected}")
        self._check(min(model.available for model in self._wallets.values()) >= 0, expected)

    def teardown(self) -> None:
        try:
            if not self._failed:
                self.sweep()
                self._compare_rows()
                broken = self._run(self._ledger.broken())
                assert not broken, broken
        finally:
            self._run(self._forget())

    def _send(self, by_wallet: dict[str, list[Op]]) -> None:
        batches = list(by_wallet.items())
        self._failed = True  # until it is known not to have: an error of the database is a failure too
        answered = self._run(self._ledger.apply_all(batches))
        self._failed = False
        for (wallet_id, ops), answers in zip(batches, answered, strict=True):
            self._compare_answers(self._wallets[wallet_id], ops, answers)

    def _compare_answers(self, model: ModelWallet, ops: Sequence[Op], answers: Sequence[Answer]) -> None:
        told = [
            (str(answer.outcome), answer.amount_nanos, answer.shortfall_nanos, answer.available_nanos)
            for answer in answers
        ]
        expected = [model.apply(op) for op in ops]
        self._check(told == expected, f"told {told}, expected {expected}")
        funds = {(answer.balance_nanos, answer.held_nanos) for answer in answers}
        self._check(funds == {(model.balance, model.held)}, f"{funds} after {ops}")
        self._database.seen |= {answer.outcome for answer in answers}

    def _post(self, wallet_id: str, kind: str, amount: int, posting_id: str) -> None:
        outcome = self._run(self._ledger.post(wallet_id, amount, kind=kind, posting_id=posting_id))
        self._database.seen.add(outcome)
        expected = self._wallets[wallet_id].post(kind, amount, posting_id)
        self._check(outcome == expected, f"told {outcome}, expected {expected}")

    def _compare_rows(self) -> None:
        for wallet_id, model in self._wallets.items():
            for table, expected in (("ledger_entries", model.entries), ("usage_events", model.events)):
                stored = self._run(self._ledger.rows(table, wallet_id))
                key = "seq" if table == "ledger_entries" else "hold_id"
                wanted = sorted(expected, key=lambda row: (row[key], row.get("late", False)))
                assert len(stored) == len(wanted), (table, stored, wanted)
                assert [{name: row[name] for name in like} for row, like in zip(stored, wanted, strict=True)] == wanted

    def _check(self, is_right: bool, said: object) -> None:
        self._failed = self._failed or not is_right
        assert is_right, said

    async def _forget(self) -> None:
        for table in MONEY_TABLES:
            await self._ledger.connection.execute(f"DELETE FROM {table}")


def live(database: Database, chosen: settings) -> None:
    """Live as many lives as `chosen` says. Raises what went wrong in the first that did."""

    class Life(LedgerLife):
        def __init__(self) -> None:
            super().__init__(database)

    run_state_machine_as_test(Life, settings=chosen)
