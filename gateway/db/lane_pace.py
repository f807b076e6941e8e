"""How large a batch a lane waits for: its own work weighed against the ledger's."""

_MEAN_WEIGHT = 0.05


class Mean:
    """A moving mean, of seconds."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = 0.0

    def add(self, value: float) -> None:
        self.mean += (value - self.mean) * _MEAN_WEIGHT


def batch_wanted(calls: int, work_seconds: float, statement_seconds: float) -> int:
    """How many operations to wait for: those of all `calls`, or of half of them.

    All of them share one statement best. But then the gateway has nothing to do while the ledger works, and the ledger
    nothing while the gateway does; where the gateway's own work for the calls, `work_seconds` each, takes longer than
    a statement, halves keep both busy.
    """
    return calls // 2 if calls * work_seconds > statement_seconds else calls
