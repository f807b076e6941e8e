"""A gateway that the tests of one module share."""

from tests.support.shop import open_all_day, shop

__all__ = ["open_all_day", "shop"]
