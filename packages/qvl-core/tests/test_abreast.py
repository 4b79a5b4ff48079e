"""Several things at a time, and nobody waits for what is left behind."""

import time
from threading import Event

import pytest

from qvl_core.abreast import abreast


def test_each_item_comes_once_with_what_was_made_of_it() -> None:
    assert dict(abreast(lambda number: number**2, range(20), 3)) == {number: number**2 for number in range(20)}
    assert list(abreast(str, [], 3)) == []


def test_so_many_are_under_way_together() -> None:
    both = [Event(), Event()]

    def meet(number: int) -> bool:
        both[number].set()
        return both[1 - number].wait(5)

    assert dict(abreast(meet, [0, 1], 2)) == {0: True, 1: True}


def test_an_error_waits_for_nobody_and_begins_nothing_more() -> None:
    begun, over = list[int](), Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            over.wait(30)
        raise ValueError(number)

    start = time.monotonic()
    with pytest.raises(ValueError, match="1"):
        list(abreast(work, [0, 1, *range(2, 50)], 2))
    assert time.monotonic() - start < 5
    over.set()
    assert len(begun) < 50
