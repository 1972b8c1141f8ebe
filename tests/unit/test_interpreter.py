import gc
import sys
from collections.abc import Iterator

import pytest

from oyez.runtime.interpreter import SWITCH, YOUNG, settle, tune


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def test_the_collector_looks_seldom_and_threads_change_quickly() -> None:
    gc.set_threshold(700, 10, 10)
    tune()
    assert gc.get_threshold() == (YOUNG, 10, 10)
    assert sys.getswitchinterval() == pytest.approx(SWITCH)


def test_thresholds_that_were_set_stay() -> None:
    gc.set_threshold(1_234, 5, 6)
    tune()
    assert gc.get_threshold() == (1_234, 5, 6)


def test_circles_among_what_is_new_are_still_found_after_settling() -> None:
    class Circle:
        found = 0

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            Circle.found += 1

    settle()
    assert gc.get_freeze_count() > 0
    Circle()
    gc.collect()
    assert Circle.found == 1
