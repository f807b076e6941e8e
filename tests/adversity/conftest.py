"""What the tests with real processes share."""

from tests.support.processes import durable

__all__ = ["durable"]
