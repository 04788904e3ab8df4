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
        one.add(6)
        assert budget.used == 10
    assert budget.used == 0


def test_who_is_alone_gets_what_they_ask_for() -> None:
    budget = ByteBudget(10, "bytes")
    with budget.share() as one, budget.share() as other:
        one.add(11)
        one.add(5)
        with pytest.raises(Overloaded):
            other.add(1)
    assert budget.used == 0


def test_a_share_goes_back_whatever_happens() -> None:
    budget = ByteBudget(10, "bytes")
    with pytest.raises(KeyError), budget.share() as share:
        share.add(10)
        raise KeyError
    assert budget.used == 0
