"""How large a batch a lane waits for, and takes: its own work weighed against the ledger's. It reads no clock."""

_MEAN_WEIGHT = 0.05


class Mean:
    """A moving mean, of seconds."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = 0.0

    def add(self, value: float) -> None:
        self.mean += (value - self.mean) * _MEAN_WEIGHT


class Pace:
    """What a lane's statements have taken so far, and what the process has worked for each of their operations."""

    def __init__(self) -> None:
        self._statement = Mean()
        self._work = Mean()
        self._worked_seconds = 0.0

    @property
    def statement_seconds(self) -> float:
        """How long a statement takes, by the mean."""
        return self._statement.mean

    def answered(self, operations: int, statement_seconds: float, worked_seconds: float) -> None:
        """A statement was answered. `worked_seconds` is the CPU time of the process so far."""
        self._statement.add(statement_seconds)
        if self._worked_seconds:
            self._work.add((worked_seconds - self._worked_seconds) / operations)
        self._worked_seconds = worked_seconds

    def wanted(self, queued: int, calls: int) -> int:
        """How many operations the next statement should have, while so many are queued and so many calls in flight."""
        if queued > calls:
            return queued  # there are others than those of calls, for which nobody waits
        return batch_wanted(calls, self._work.mean, self._statement.mean)


def batch_wanted(calls: int, work_seconds: float, statement_seconds: float) -> int:
    """How many operations a statement should have: those of all `calls`, or of half of them.

    All of them share one statement best. But then the gateway has nothing to do while the ledger works, and the ledger
    nothing while the gateway does; where the gateway's own work for the calls, `work_seconds` each, takes longer than
    a statement, halves keep both busy. They are waited for, and no more are taken: halves that met would stay together.
    """
    return max(1, calls // 2) if calls * work_seconds > statement_seconds else calls
