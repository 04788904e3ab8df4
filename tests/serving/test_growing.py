"""Snapshots of an answer that grows: what they are, and that each costs the same however long it is."""

import operator
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.planning.benchmarks.crowds import bytecodes
from epdjax.serving.fanout import Answers
from epdjax.serving.growing import GrowingText, Prefix
from epdjax.serving.http.answers import Events
from epdjax.serving.http.protocol import StreamOptions
from epdjax.serving.live import LiveRequest
from epdjax.serving.outputs import CompletionOutput, TokenLogprob
from epdjax.serving.params import SamplingParams
from epdjax.serving.request import RequestSpec
from epdjax.serving.rows import settings_of


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.slices(12))
def test_a_prefix_is_like_a_tuple(before: list[int], after: list[int], where: slice) -> None:
    growing = list(before)
    view, same = Prefix(growing), tuple(before)
    growing += after
    assert view == same and same == view and hash(view) == hash(same) and repr(view) == repr(same)
    assert list(view) == before and len(view) == len(same) and view[where] == same[where]
    assert isinstance(view[where], tuple)
    assert operator.add(view, (1,)) == (*same, 1) and operator.add((1,), view) == (1, *same)
    assert view != (*same, 1) and view != before and (view == Prefix(growing)) == (not after)
    for index in range(-len(same), len(same)):
        assert view[index] == same[index]
    with pytest.raises(IndexError):
        view[len(same)]


@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)), st.integers(0, 20))
def test_a_text_as_it_was(before: list[str], after: list[str], known: int) -> None:
    text = GrowingText()
    for piece in before:
        text.append(piece)
    view = text.view()
    for piece in after:
        text.append(piece)
    assert str(view) == "".join(before) and view.since(known) == "".join(before)[known:]
    assert str(text.view()) == "".join(before + after) and len(text) == len("".join(before + after))


def test_snapshots_are_compared_by_what_they_say() -> None:
    text = GrowingText()
    text.append("a hat")
    view = CompletionOutput(0, text.view(), Prefix([1, 2]))
    assert view == CompletionOutput(0, "a hat", (1, 2)) != CompletionOutput(0, "a hat", (1, 2), "stop")
    assert view.text_since(2) == CompletionOutput(0, "a hat", (1, 2)).text_since(2) == "hat"
    assert view.ended("abort").finish_reason == "abort" and "a hat" in repr(view)


class Counted(list):
    """A list that counts the entries that are read or copied."""

    read = 0

    def __getitem__(self, where: Any) -> Any:
        found = super().__getitem__(where)
        Counted.read += len(found) if isinstance(where, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        for entry in super().__iter__():
            Counted.read += 1
            yield entry


class Pieces:
    """In place of a detokenizer: three characters a token."""

    stopped = False
    begun = True

    def __init__(self) -> None:
        self.shown = GrowingText()

    def push(self, token_id: int, look: bool = True) -> str:
        self.shown.append("ab ")
        return "ab "

    def finish(self) -> str:
        return ""


class Bytes:
    """In place of `TokenBytes`."""

    def logprob(self, token_id: int, *_: Any) -> TokenLogprob:
        return TokenLogprob(token_id, -1.0, "ab ", b"ab ")


class Sampled:
    tokens, logprobs = np.array([7]), True


def answer(name: str, index: int, params: SamplingParams, sink: Any) -> LiveRequest:
    request = LiveRequest(
        RequestSpec(name, 3, 10_000),
        {},
        [],
        np.zeros(3, np.int32),
        0,
        settings_of(params, 0, 0, 3),
        params,
        frozenset(),
        Pieces(),  # type: ignore[arg-type]
        Bytes(),  # type: ignore[arg-type]
        sink,
        index,
    )
    request.tokens, request.logprobs = Counted(), Counted()
    shown = request.detokenizer.shown
    shown._pieces, shown._ends = Counted(), Counted()
    return request


@pytest.mark.parametrize("n", [1, 3])
def test_a_token_costs_the_same_however_long_the_answer_is(n: int) -> None:
    """From the step to the bytes of the stream, all answers together, log-probabilities included."""
    params, sent = SamplingParams(logprobs=0, n=n), []
    events = Events("id", "model", 0, StreamOptions(include_usage=True, continuous_usage_stats=True))
    answers = Answers([f"r{i}" for i in range(n)], params, lambda output: sent.append(events.new(output)), print)
    live = [answer(f"r{i}", i, params, answers.take) for i in range(n)]
    costs: list[tuple[float, int, int]] = []
    for number in range(1000):
        Counted.read = 0
        with bytecodes() as spent:
            for request in live:
                request.accept(Sampled(), 0)  # type: ignore[arg-type]
                request.sink(request.output(None))
        costs.append((spent[0], Counted.read, sum(map(len, sent))))
        sent.clear()
        assert number < 2 or costs[-1][1] <= 40 * n, f"token {number} reads {costs[-1][1]} entries"
    early, late = costs[50], costs[-1]
    assert late[0] <= 1.5 * early[0], "bytecodes"
    assert late[2] <= early[2] + 60 * n, "bytes: its own text, and counts that have more digits"
    last = live[0].output("length").outputs[0]
    assert last.text == "ab " * 1000 and last.token_ids == (7,) * 1000 and isinstance(last.token_ids, tuple)
    assert isinstance(last.text, str) and last.logprobs is not None and len(last.logprobs) == 1000
    assert sys.getsizeof(live[0].output(None).outputs[0]) < 200
