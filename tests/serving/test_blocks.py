"""Block pools: what is taken, shared and kept always adds up, and nobody is given what somebody holds."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epdjax.serving.blocks import BlockPool

CAPACITY = 12


class Pool(RuleBasedStateMachine):
    """Holders take, publish, share and give back at random; contents are written once, when blocks are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(CAPACITY)
        self.holds: list[tuple[int, ...]] = []
        self.written: dict[int, int] = {}  # block -> which content was written last
        self.published: dict[int, tuple[int, ...]] = {}
        self.contents = 0

    @rule(count=st.integers(0, 6))
    def take(self, count: int) -> None:
        room = self.pool.available
        blocks = self.pool.take(count)
        assert (blocks is None) == (count > room)
        if blocks:
            held = {block for some in self.holds for block in some}
            assert len(set(blocks)) == count and not held & set(blocks) and 0 not in blocks
            self.contents += 1
            self.written.update(dict.fromkeys(blocks, self.contents))
            self.holds.append(blocks)

    @precondition(lambda self: self.holds)
    @rule(pick=st.integers(0, 100), key=st.integers(0, 4))
    def publish(self, pick: int, key: int) -> None:
        blocks = self.holds[pick % len(self.holds)]
        known = self.pool.knows(key)
        self.pool.publish(key, blocks)
        if not known and self.pool.knows(key):
            self.published[key] = tuple(self.written[block] for block in blocks)

    @rule(key=st.integers(0, 4))
    def share(self, key: int) -> None:
        known = self.pool.knows(key)
        blocks = self.pool.share(key)
        assert (blocks is not None) == known
        if blocks is not None:
            assert tuple(self.written[block] for block in blocks) == self.published[key], "someone else's content"
            self.holds.append(blocks)

    @precondition(lambda self: self.holds)
    @rule(pick=st.integers(0, 100))
    def hold_too(self, pick: int) -> None:
        blocks = self.holds[pick % len(self.holds)]
        self.pool.hold(blocks)
        self.holds.append(blocks)

    @precondition(lambda self: self.holds)
    @rule(pick=st.integers(0, 100))
    def give_back(self, pick: int) -> None:
        self.pool.give_back(self.holds.pop(pick % len(self.holds)))

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        assert not any(self.pool.knows(key) for key in range(5)) and self.pool.kept == 0

    @invariant()
    def adds_up(self) -> None:
        held = [block for some in self.holds for block in some]
        assert self.pool.users == len(held) and self.pool.held == len(set(held))
        assert self.pool.held + self.pool.available == CAPACITY
        assert 0 <= self.pool.kept <= self.pool.available


TestPool = Pool.TestCase


def test_the_least_recently_used_goes_first() -> None:
    pool = BlockPool(3)
    for key in "abc":
        blocks = pool.take(1)
        assert blocks is not None
        pool.publish(key, blocks)
        pool.give_back(blocks)
    shared = pool.share("a")
    assert shared is not None
    pool.give_back(shared)
    pool.take(1)
    assert [pool.knows(key) for key in "abc"] == [True, False, True]
    pool.take(2)
    assert not any(pool.knows(key) for key in "abc")


def test_the_end_of_a_prompt_goes_before_its_beginning() -> None:
    pool = BlockPool(3)
    blocks = pool.take(3)
    assert blocks is not None
    for key, block in zip("abc", blocks):
        pool.publish(key, (block,))
    pool.give_back(blocks)
    pool.take(1)
    assert [pool.knows(key) for key in "abc"] == [True, True, False]


def test_what_is_not_held_cannot_be_given_back() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    assert blocks is not None
    pool.give_back(blocks)
    for wrong in (pool.give_back, pool.hold):
        with pytest.raises(ValueError, match="not held"):
            wrong(blocks)
