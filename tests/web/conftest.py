"""A gateway that the tests of one module share."""

from tests.support.refusals import strict, strict_all_day
from tests.support.shop import open_all_day, shop

__all__ = ["open_all_day", "shop", "strict", "strict_all_day"]
