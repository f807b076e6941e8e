"""How an input says where it is cut into reads."""

from itertools import pairwise

CUTS_MAX = 7


def reads_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """(whole, the same in reads): the first byte says how many cuts there are, and the next ones where."""
    number = data[0] % (CUTS_MAX + 1) if data else 0
    where, whole = data[1 : number + 1], data[number + 1 :]
    offsets = [0, *sorted(len(whole) * at // 256 for at in where), len(whole)]
    return whole, [whole[start:end] for start, end in pairwise(offsets)]
