import asyncio
import re

import asyncpg
import pytest

from gateway.clock import new_id
from tests.cli.conftest import BadUsage
from tests.support.command import Command, Said
from tests.support.ledger import Books, make_books

UNKNOWN = "00000000-0000-7000-8000-000000000000"
WALLET_MEMBERS = {
    *("wallet_id", "name", "status", "balance", "balance_nanos", "held", "held_nanos", "available"),
    *("available_nanos", "floor", "floor_nanos", "entry_seq", "created_at"),
}
ENTRY_MEMBERS = {
    *("seq", "kind", "contra", "amount", "amount_nanos", "balance_after", "balance_after_nanos", "hold_id"),
    *("posting_id", "actor", "reason", "created_at"),
}
CALL_MEMBERS = {
    *("hold_id", "late", "resolution", "basis", "reason", "endpoint", "upstream", "price_id", "usage", "cost"),
    *("cost_nanos", "charged", "charged_nanos", "shortfall", "shortfall_nanos", "entry_seq", "created_at"),
}
CUT_WHOEVER_WAITS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND datname = current_database()
"""


def books_in(dsn: str) -> Books:
    async def make() -> Books:
        connection = await asyncpg.connect(dsn)
        try:
            return await make_books(connection)
        finally:
            await connection.close()

    return asyncio.run(make())


def opened(farebox: Command, *options: str) -> str:
    return str(farebox.json("wallet", "create", *options)["wallet_id"])


def test_a_wallet_is_opened_empty(farebox: Command) -> None:
    wallet = farebox.json("wallet", "create")
    assert wallet.keys() == WALLET_MEMBERS
    assert (wallet["name"], wallet["status"], wallet["balance"], wallet["entry_seq"]) == ("", "active", "0.00", 0)


def test_a_wallet_is_opened_with_a_credit_and_a_floor(farebox: Command) -> None:
    wallet = farebox.json("wallet", "create", "--name", "Ann", "--credit", "5", "--floor", "0.5", "--actor", "me")
    assert (wallet["name"], wallet["balance"], wallet["balance_nanos"]) == ("Ann", "5.00", 5_000_000_000)
    assert (wallet["available"], wallet["floor_nanos"]) == ("5.50", 500_000_000)
    entry = farebox.json("wallet", "entries", wallet["wallet_id"])["entries"][0]
    assert (entry["kind"], entry["amount"], entry["actor"], entry["reason"]) == (
        *("credit", "5.00"),
        *("me", "opening credit"),
    )


def test_money_is_added_and_corrected(farebox: Command) -> None:
    wallet_id = opened(farebox)
    posted = farebox.json("wallet", "credit", wallet_id, "2.5", "--reason", "invoice 7")
    assert posted.keys() == {
        *("outcome", "wallet_id", "posting_id", "amount", "amount_nanos", "balance", "balance_nanos"),
    }
    assert (posted["outcome"], posted["balance"]) == ("posted", "2.50")
    assert farebox.json("wallet", "adjust", wallet_id, "-0.25", "--reason", "slip")["balance"] == "2.25"
    assert (
        farebox.json("wallet", "adjust", wallet_id, "0.000000001", "--reason", "slip")["balance_nanos"] == 2_250_000_001
    )
    listed = farebox.json("wallet", "entries", wallet_id)
    assert all(entry.keys() == ENTRY_MEMBERS for entry in listed["entries"])
    assert [(entry["seq"], entry["kind"], entry["amount"]) for entry in listed["entries"]] == [
        (3, "adjust", "0.000000001"),
        (2, "adjust", "-0.25"),
        (1, "credit", "2.50"),
    ]
    # Whoever gave no name is recorded as the operating system knows them.
    assert all(entry["actor"] for entry in listed["entries"])


def test_a_retry_with_the_same_posting_id_posts_once(farebox: Command) -> None:
    wallet_id, posting_id = opened(farebox), new_id()
    credit = ("wallet", "credit", wallet_id, "3", "--reason", "once", "--posting-id", posting_id)
    assert farebox.json(*credit)["outcome"] == "posted"
    again = farebox.json(*credit)
    assert (again["outcome"], again["balance"]) == ("already_posted", "3.00")
    assert "already posted; the balance is 3.00" in farebox(*credit).out


@pytest.mark.parametrize(("command", "amount"), [("credit", "4"), ("adjust", "3")])
def test_a_posting_id_that_stands_for_something_else_is_refused(farebox: Command, command: str, amount: str) -> None:
    wallet_id, posting_id = opened(farebox), new_id()
    farebox.json("wallet", "credit", wallet_id, "3", "--reason", "first", "--posting-id", posting_id)
    said = farebox("wallet", command, wallet_id, amount, "--reason", "x", "--posting-id", posting_id, "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "posting_differs")
    assert farebox.json("wallet", "show", wallet_id)["balance"] == "3.00"


def test_no_more_is_taken_away_than_is_free(farebox: Command) -> None:
    wallet_id = opened(farebox, "--credit", "1", "--floor", "1")
    said = farebox("wallet", "adjust", wallet_id, "-2.000000001", "--reason", "x", "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "insufficient_funds")
    assert farebox.json("wallet", "adjust", wallet_id, "-2", "--reason", "x")["balance"] == "-1.00"


def test_a_balance_beyond_the_ledgers_range_is_refused(farebox: Command) -> None:
    wallet_id = opened(farebox, "--credit", "2305843009")
    for _ in range(3):
        said = farebox("wallet", "credit", wallet_id, "2305843009.21", "--reason", "x", "--json")
    assert said.exit_code == 0
    said = farebox("wallet", "credit", wallet_id, "2305843009.21", "--reason", "x", "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "balance_out_of_range")


def test_a_wallet_is_suspended_and_reopened(farebox: Command) -> None:
    wallet_id = opened(farebox)
    assert farebox.json("wallet", "suspend", wallet_id)["status"] == "suspended"
    assert farebox.json("wallet", "suspend", wallet_id)["status"] == "suspended"
    assert farebox.json("wallet", "reopen", wallet_id)["status"] == "active"


def test_a_floor_is_moved_as_far_as_the_balance_allows(farebox: Command) -> None:
    wallet_id = opened(farebox, "--credit", "1")
    moved = farebox.json("wallet", "floor", wallet_id, "2.5", "--reason", "a good customer")
    assert (moved["floor"], moved["available"], moved["balance"]) == ("2.50", "3.50", "1.00")
    farebox.json("wallet", "adjust", wallet_id, "-3", "--reason", "test")
    said = farebox("wallet", "floor", wallet_id, "1.9", "--reason", "no longer", "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "insufficient_funds")
    assert farebox.json("wallet", "floor", wallet_id, "2", "--reason", "no longer")["floor"] == "2.00"
    said = farebox("wallet", "floor", UNKNOWN, "2", "--reason", "test", "--json")
    assert (said.exit_code, said.document["error"]["code"]) == (1, "wallet_unknown")


def test_wallets_are_listed_a_page_at_a_time(farebox: Command) -> None:
    wallet_ids = [opened(farebox, "--name", f"w{number}") for number in range(3)]
    first = farebox.json("wallet", "list", "--limit", "2")
    assert all(wallet.keys() == WALLET_MEMBERS for wallet in first["wallets"])
    assert [wallet["wallet_id"] for wallet in first["wallets"]] == wallet_ids[:2]
    second = farebox.json("wallet", "list", "--limit", "2", "--after", first["next_after"])
    assert [wallet["wallet_id"] for wallet in second["wallets"]] == wallet_ids[2:]
    assert second["next_after"] is None


def test_entries_are_listed_a_page_at_a_time(farebox: Command) -> None:
    wallet_id = opened(farebox, "--credit", "1")
    farebox.json("wallet", "credit", wallet_id, "1", "--reason", "x")
    first = farebox.json("wallet", "entries", wallet_id, "--limit", "1")
    assert (first["entries"][0]["seq"], first["next_before"]) == (2, 2)
    second = farebox.json("wallet", "entries", wallet_id, "--limit", "1", "--before", "2")
    assert (second["entries"][0]["seq"], second["next_before"]) == (1, None)


def test_a_wallet_is_shown_with_its_entries_and_calls(farebox: Command, database_url: str) -> None:
    books = books_in(database_url)
    shown = farebox.json("wallet", "show", books.wallet_id)
    assert shown.keys() == WALLET_MEMBERS | {"entries", "calls"}
    assert all(entry.keys() == ENTRY_MEMBERS for entry in shown["entries"])
    assert all(call.keys() == CALL_MEMBERS for call in shown["calls"])
    assert shown["held_nanos"] == 1_000_000
    assert [(call["resolution"], call["late"]) for call in shown["calls"]] == [
        ("expired", False),
        ("settled", True),
        ("expired", False),
        ("voided", False),
        *[("settled", False)] * 3,
    ]
    assert shown["calls"][-1]["usage"] == {"input": 100, "cached_input": 7, "output": 31, "reasoning": 12}


def test_tables_say_the_same_without_colours(farebox: Command, database_url: str) -> None:
    books = books_in(database_url)
    for arguments in (("show", books.wallet_id), ("entries", books.wallet_id), ("list",)):
        said = farebox("wallet", *arguments)
        assert said.exit_code == 0
        assert re.search(r"[\x1b]| $", said.out, re.MULTILINE) is None
        assert books.wallet_id in said.out or "revenue" in said.out
        # Nothing is cut, however long the lines.
        assert "…" not in said.out


def test_markup_in_a_name_is_text(farebox: Command) -> None:
    opened(farebox, "--name", "[red]:smile:[/red]")
    assert "[red]:smile:[/red]" in farebox("wallet", "list").out


UNKNOWN_WALLET = [
    ["show", UNKNOWN],
    ["entries", UNKNOWN],
    ["suspend", UNKNOWN],
    ["reopen", UNKNOWN],
    ["credit", UNKNOWN, "1", "--reason", "x"],
    ["adjust", UNKNOWN, "1", "--reason", "x"],
]


def test_an_unknown_wallet_is_refused(farebox: Command) -> None:
    for arguments in UNKNOWN_WALLET:
        said = farebox("wallet", *arguments)
        assert (said.exit_code, said.out, said.err) == (1, "", f"farebox: there is no wallet {UNKNOWN}\n")


BAD_USAGE: list[tuple[list[str], str]] = [
    (["show", "one"], "'one' is not an id"),
    (["credit", UNKNOWN, "five", "--reason", "x"], "'five' is not a decimal amount"),
    (["credit", UNKNOWN, "1_0", "--reason", "x"], "'1_0' is not a decimal amount"),
    (["credit", UNKNOWN, "NaN", "--reason", "x"], "'NaN' is not a decimal amount"),
    (["credit", UNKNOWN, "0.0000000001", "--reason", "x"], "more than nine decimal places"),
    (["credit", UNKNOWN, "1e300", "--reason", "x"], "out of range"),
    (["credit", UNKNOWN, "0", "--reason", "x"], "must be above zero"),
    (
        ["credit", UNKNOWN, "-1", "--reason", "x"],
        "must be above zero (to take money away, use `farebox wallet adjust`)",
    ),
    (["credit", UNKNOWN, "1"], "Missing option '--reason'"),
    (["credit", UNKNOWN, "1", "--reason", ""], "must not be empty"),
    (["credit", UNKNOWN, "1", "--reason", "a\nb"], "must be printable"),
    (["credit", UNKNOWN, "1", "--reason", "x" * 201], "at most 200 characters"),
    (["credit", UNKNOWN, "1", "--reason", "x", "--posting-id", "7"], "'7' is not an id"),
    (["credit", UNKNOWN, "1", "--reason", "x", "--posting", "7"], "unexpected extra arguments"),
    (["adjust", UNKNOWN, "0", "--reason", "x"], "must not be zero"),
    (["create", "--credit", "-5"], "must be above zero"),
    (["create", "--floor", "-5"], "must not be negative"),
    (["create", "--floor", "2305843009.3"], "out of range"),
    (["create", "--name", "\x1b[31m"], "must be printable"),
    (["list", "--limit", "0"], "not in the range"),
    (["list", "--after", "x"], "'x' is not an id"),
    (["entries", UNKNOWN, "--before", "0"], "not in the range"),
    (["credits"], "No such command 'credits'"),
]


@pytest.mark.parametrize(("arguments", "why"), BAD_USAGE, ids=lambda value: repr(value)[:60])
def test_bad_usage_is_one_clear_line(bad_usage: BadUsage, arguments: list[str], why: str) -> None:
    assert why in bad_usage("wallet", *arguments)


def test_a_refusal_is_a_document_too(farebox: Command) -> None:
    said = farebox("wallet", "show", UNKNOWN, "--json")
    assert said.exit_code == 1
    assert said.document == {"error": {"code": "wallet_unknown", "message": f"there is no wallet {UNKNOWN}"}}


def test_a_credit_whose_answer_is_lost_says_how_to_find_out(farebox: Command, database_url: str) -> None:
    wallet_id, posting_id = opened(farebox), new_id()
    arguments = ("wallet", "credit", wallet_id, "1", "--reason", "x", "--posting-id", posting_id)

    async def credit_and_cut() -> Said:
        locker, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
        try:
            async with locker.transaction(), asyncio.timeout(10):
                await locker.execute("SELECT FROM wallets FOR UPDATE")
                running = asyncio.get_running_loop().create_task(asyncio.to_thread(farebox, *arguments))
                # It waits for the row; then its connection is cut, as a failover would.
                while not await watcher.fetchval(CUT_WHOEVER_WAITS):
                    await asyncio.sleep(0.01)
                return await running
        finally:
            await locker.close()
            await watcher.close()

    said = asyncio.run(credit_and_cut())
    assert said.exit_code == 3
    assert f"repeat the command with --posting-id {posting_id}" in said.err
    assert farebox.json("wallet", "show", wallet_id)["balance"] == "0.00"
    assert farebox.json(*arguments)["balance"] == "1.00"
