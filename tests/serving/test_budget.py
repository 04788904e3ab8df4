import threading
import time

import pytest

from epdjax.serving.budget import ByteBudget
from epdjax.serving.errors import Overloaded


def test_what_many_hold_together_is_bounded() -> None:
    budget = ByteBudget(10, "bytes")
    with budget.share() as one, budget.share() as other:
        one.add(4)
        other.add(6)
        with pytest.raises(Overloaded, match="as many bytes as it can"):
            one.add(1)
        other.release()
        other.release()
        one.add(3)
        assert budget.used == 7
    assert budget.used == 0


def test_what_is_larger_than_all_leaves_room_for_others() -> None:
    budget = ByteBudget(100, "bytes")
    with budget.share() as large, budget.share() as small, budget.share() as another:
        large.add(500)
        large.add(1000)
        small.add(25)
        with pytest.raises(Overloaded):
            another.add(200)
    assert budget.used == 0


def test_waiting_for_others_to_give_some_back() -> None:
    budget = ByteBudget(10, "bytes")
    with budget.share() as one, budget.share() as other:
        one.add(7)
        with pytest.raises(Overloaded):
            other.add(5, time.monotonic() + 0.05)
        threading.Timer(0.05, one.release).start()
        other.add(5, time.monotonic() + 60)
        assert budget.used == 5


def test_nothing_is_taken_once_it_is_over() -> None:
    budget = ByteBudget(10, "bytes")
    with budget.share() as one:
        pass
    with pytest.raises(Overloaded, match="over"):
        one.add(1)
    assert budget.used == 0


def test_a_share_goes_back_whatever_happens() -> None:
    budget = ByteBudget(10, "bytes")
    with pytest.raises(KeyError), budget.share() as share:
        share.add(10)
        raise KeyError
    assert budget.used == 0
