"""Several answers to one prompt. Each is a request of its own; here they become one again.

The first enters alone. The others follow when it has its first token (`LiveRequest.followers`), so that they find its
prompt's KV and its MM tokens in the caches instead of making them again. Room for all of them is kept from the start:
the scheduler counts a request's followers as requests (`RequestSpec.answers`), and takes all of them or refuses the
first.
"""

import dataclasses
from collections.abc import Callable, Sequence

from epdjax.serving.errors import RequestError
from epdjax.serving.live import Sink
from epdjax.serving.outputs import CompletionOutput, RequestOutput
from epdjax.serving.params import SamplingParams


class Answers:
    """The sink of all answers to one prompt; passes on snapshots of them together. For one thread at a time."""

    def __init__(self, ids: Sequence[str], params: SamplingParams, sink: Sink, abort: Callable[[str], None]):
        """
        Args:
            ids: of the requests, in the order of their answers; the first is also that of the whole.
            sink: hears of every change, and of the end once.
            abort: ends a request.
        """
        self._ids, self._sink, self._abort = ids, sink, abort
        nothing = None if params.logprobs is None else ()
        self._answers = [CompletionOutput(index, "", (), None, nothing) for index in range(len(ids))]
        self._cached_tokens = 0
        self._over = False

    def take(self, output: RequestOutput | RequestError) -> None:
        """A snapshot of one of the answers, or an error, which ends all of them."""
        if self._over:
            return
        if isinstance(output, RequestError):
            self._end()
            self._sink(output)
            return
        (answer,) = output.outputs
        self._answers[answer.index] = answer
        if answer.index == 0:
            self._cached_tokens = output.cached_tokens
        if answer.finish_reason == "abort":
            self._end()
            self._answers = [one if one.finish_reason else one.ended("abort") for one in self._answers]
        finished = all(one.finish_reason for one in self._answers)
        self._over = self._over or finished
        whole = dataclasses.replace(output, request_id=self._ids[0], outputs=tuple(self._answers), finished=finished)
        self._sink(dataclasses.replace(whole, cached_tokens=self._cached_tokens))

    def _end(self) -> None:
        self._over = True
        for request_id in self._ids:
            self._abort(request_id)
