"""The engine: one thread that feeds the scheduler and starts the work it answers; waiters tell it when work is done.

The loop never waits for a device. It sleeps on one inbox, which receives arrivals, aborts and finished work; then it
asks the scheduler what to start and dispatches that. A device is given work ahead of time, so while the loop handles
the tokens of one step the next is already running.

A move is dispatched in two parts: gather and `device_put` at once, the write into the destination's pool only when the
data has arrived, so that the destination never stalls on a link.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from epdjax.mesh.places import Place
from epdjax.serving.admission import needs, unserved_message
from epdjax.serving.audit import audit
from epdjax.serving.deployment import Deployment
from epdjax.serving.errors import (
    AnswerFailed,
    DeadlineExceeded,
    EngineEnded,
    NotFinite,
    RequestError,
    ServiceUnavailable,
    StepFailed,
)
from epdjax.serving.live import LiveRequest
from epdjax.serving.outages import Outages
from epdjax.serving.outputs import FinishReason, RequestOutput
from epdjax.serving.role_changes import RoleChanges
from epdjax.serving.role_plans import SwitchPlan
from epdjax.serving.sampling import NO_TOKEN, Sampled
from epdjax.serving.scheduler import Finished, Scheduler
from epdjax.serving.steering import Steering
from epdjax.serving.switching import Switching, SwitchReport
from epdjax.serving.waiter import STOP_TIMEOUT_S, Waiters
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Done:
    """Work whose results are there: host tokens of a step, or arrays that have arrived."""

    work: Work
    result: Any
    error: BaseException | None = None


class Engine:
    """Serves requests on a deployment until it is shut down.

    Thread-safe: `submit`, `abort`, `call`, `switch`, `counts`, `shutdown`. Everything else happens on its own thread.
    """

    def __init__(self, deployment: Deployment):
        self.deployment = deployment
        self.instances = deployment.instances
        self.scheduler = Scheduler(deployment.scheduling, [i.spec for i in self.instances.values()])
        self.live: dict[str, LiveRequest] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.waiters = Waiters()
        self._closing = False
        self._ended = False
        self._door = threading.Lock()  # no request may enter after the loop has looked for the last time
        self.dead: str | None = None
        config = deployment.workshop.config
        self.outages = Outages(self, config.hang_s, config.move_s)
        self.switching = Switching(self, finish_s=config.offload_s)
        self._thread = threading.Thread(target=self._loop, name="epdjax-engine", daemon=True)
        self._thread.start()
        self.steering: Steering | None = None
        if config.role_switching != "off":
            self.steering = Steering(self, config.role_switching, config.controller)

    # ---- from any thread ------------------------------------------------------------------------------------------

    def submit(self, request: LiveRequest) -> None:
        """Hand over a request; its sink hears of everything that follows, refusal included."""
        with self._door:
            if not self._ended:
                self._inbox.put(lambda: self._arrive(request))
                return
        request.sink(ServiceUnavailable(self.dead or "the engine is shut down"))

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds; nothing happens if it is over."""
        self._inbox.put(lambda: self._abort(request_id))

    def post(self, message: Callable[[], None]) -> None:
        """Have something done on the engine's thread; nothing is said when it is."""
        self._inbox.put(message)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread, between one work and the next.

        Raises:
            EngineEnded: the engine has ended.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._door:
            if self._ended:
                raise EngineEnded("the engine is shut down")
            self._inbox.put(run)
        return future.result()

    @property
    def roles(self) -> RoleChanges:
        """The scheduler's side of role switches; for the engine's thread."""
        return self.scheduler.roles

    @property
    def places(self) -> list[Place]:
        """All instances, and those that were taken out, without roles; as they are now, for any thread."""
        lost = self.outages.lost
        return [*list(self.deployment.places), *(some.place for some in lost.values())]

    def switch(self, plan: SwitchPlan) -> "concurrent.futures.Future[SwitchReport]":
        """Begin a role switch.

        Raises:
            SwitchRefused: another one is under way.
            EngineEnded: the engine is shutting down.
        """
        if self._closing or self._ended:
            raise EngineEnded("the engine is shutting down")
        return self.switching.start(plan)

    def counts(self) -> dict[str, int]:
        """Live requests by state."""
        return self.scheduler.counts()

    def shutdown(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Stop: with `drain` after all requests are finished (or `timeout_s` seconds), else at once."""

        def close() -> None:
            self._closing = True
            if not drain:
                self._fail_all(ServiceUnavailable("the engine is shutting down"))

        if self.steering is not None:
            self.steering.stop(STOP_TIMEOUT_S)
        self._inbox.put(close)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._inbox.put(lambda: self._fail_all(ServiceUnavailable("the engine is shutting down")))
            self._thread.join(timeout_s)
        self.switching.join(STOP_TIMEOUT_S)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not (self._closing and self.scheduler.idle):
                self._handle_inbox()
                self.outages.look()
                for event in self.scheduler.overdue(time.monotonic()):
                    self._conclude(event, DeadlineExceeded("the request was not finished within its time limit"))
                for work in self.scheduler.next_work(time.monotonic()):
                    self._start(work)
                if self.scheduler.idle:
                    self._check_books()
        except Exception as error:  # a bug in the engine itself: nobody may be left waiting
            log.exception("the engine has failed")
            self.dead = f"the engine has failed: {error!r}"
        finally:
            self._closing = True
            with self._door:
                self._ended = True
            try:
                self._refuse_rest()
            finally:
                self.waiters.stop()

    def _refuse_rest(self) -> None:
        """The loop is over: whoever is still here, or came in too late, is told so, whatever else goes wrong."""
        reason = ServiceUnavailable(self.dead or "the engine is shut down")
        while not self._inbox.empty():
            message = self._inbox.get()
            try:
                message()
            except Exception:  # the books may be wrong already, if the engine has failed
                log.exception("a message could not be taken in after the end")
        for request in list(self.live.values()):
            self._close(request, reason)

    def _check_books(self) -> None:
        """Nothing is being served, so nobody may hold anything; where somebody does, a bug has let blocks leak. They
        are got back, whoever holds them, since there is nobody left who could."""
        try:
            audit(self.scheduler)
        except Exception:
            log.exception("the scheduler's books do not balance; beginning with new ones")
            self.scheduler.renew_books()
            for instance in self.instances.values():
                instance.staged.clear()
                self.outages.recover(instance)

    def _handle_inbox(self) -> None:
        """Wait for something to happen, for a deadline, or for a step to take too long; take in all that happened."""
        deadline = min(self.scheduler.next_deadline, self.outages.next_alarm)
        try:
            message = self._inbox.get(timeout=None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        while True:
            message()
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return

    def _arrive(self, request: LiveRequest) -> None:
        if self._closing:
            request.sink(ServiceUnavailable("the engine is shutting down and takes no more requests"))
        else:
            self._enter(request)

    def _enter(self, request: LiveRequest) -> None:
        try:
            self.scheduler.add(request.spec, time.monotonic())
        except RequestError as error:
            request.sink(error)
            return
        self.live[request.spec.request_id] = request

    def _abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id, time.monotonic())
        request = self.live.get(request_id)
        if request is not None:
            self._close(request, request.output("abort"))

    def _fail_all(self, error: RequestError) -> None:
        for request in list(self.live.values()):
            try:
                self.scheduler.abort(request.spec.request_id, time.monotonic())
            finally:
                self._close(request, error)

    def _close(self, request: LiveRequest, last: RequestOutput | RequestError) -> None:
        del self.live[request.spec.request_id]
        try:
            request.sink(last)
        except Exception:  # whoever waited is gone
            log.exception("could not hand over the end of %s", request.spec.request_id)

    # ---- starting work --------------------------------------------------------------------------------------------

    def _start(self, work: Work) -> None:
        """Dispatch work, and have a waiter report when its results are there."""
        lane = "move" if isinstance(work, (MoveMM, MoveKV)) else "compute"
        fetch = isinstance(work, (Prefill, Decode))
        try:
            wait_for = self._dispatch(work)
            self.waiters.of(work.instance, lane).watch(wait_for, fetch, functools.partial(self._report, work))
        except Exception as error:
            self._report(work, None, error)

    def _report(self, work: Work, result: Any, error: BaseException | None) -> None:
        self._inbox.put(lambda: self._finish(Done(work, result, error)))

    def _dispatch(self, work: Work) -> Any:
        """Start work on its devices; returns the arrays to wait for."""
        target = self.instances[work.instance]
        match work:
            case Encode():
                units = [self.live[unit.request_id].units[unit.index].unit for unit in work.units]
                return target.encode(work.work_id, units)
            case MoveMM():
                return self.instances[work.source].send_mm(work.encode_id, target)
            case Prefill():
                return target.prefill(work.chunks, self.live)
            case MoveKV():
                return self.instances[work.source].send_kv(work.parts, target)
            case Decode():
                return target.decode(work.sequences, self.live)

    # ---- finished work --------------------------------------------------------------------------------------------

    def _finish(self, done: Done) -> None:
        work, now = done.work, time.monotonic()
        if not self.scheduler.is_running(work):
            return  # its instance was taken out meanwhile
        error = done.error
        stopped: dict[str, FinishReason] = {}
        if error is None:
            try:
                self._land(work, done.result)
                stopped = self._deliver(work, done.result)
            except Exception as trouble:
                error = trouble
        if error is not None:
            self.fail(work, error)
            self.outages.failed_on(work.instance)
            return
        for event in self.scheduler.finished(work, now, stopped):
            self._conclude(event, None)
        if isinstance(work, (MoveMM, MoveKV)):
            self.outages.landed(work)
        self._unstage()

    def fail(self, work: Work, error: BaseException) -> None:
        """Work has failed, or never ends: those in it start over, or hear of it. What it brings comes too late from now
        on: it is not written to blocks that may be somebody else's."""
        log.error("%s on %s has failed", type(work).__name__, work.instance, exc_info=error)
        for event in self.scheduler.failed(work, time.monotonic()):
            self._conclude(event, error)
        self._unstage()

    def _unstage(self) -> None:
        """Let go of encode results that have been moved to wherever they are wanted."""
        for instance in self.instances.values():
            for encode_id in [e for e in instance.staged if not self.scheduler.is_staged(e)]:
                del instance.staged[encode_id]

    def _land(self, work: Work, result: Any) -> None:
        """Write what has arrived into the pools it was moved to. Requests that have left meanwhile hold their blocks
        until this work has ended."""
        target = self.instances[work.instance]
        match work:
            case MoveMM():
                target.land_mm(result, self.instances[work.source].staged[work.encode_id], work.rows)
            case MoveKV():
                target.land_kv(result, work.parts, self.live)

    def _deliver(self, work: Work, sampled: Sampled) -> dict[str, FinishReason]:
        """Hand the tokens of a step to their requests; returns those whose answer they end."""
        if isinstance(work, Prefill):
            rows = [(chunk.request_id, chunk.is_last) for chunk in work.chunks]
        elif isinstance(work, Decode):
            rows = [(sequence.request_id, True) for sequence in work.sequences]
        else:
            return {}
        stopped: dict[str, FinishReason] = {}
        for row, (request_id, has_token) in enumerate(rows):
            request = self.live.get(request_id)
            if request is None or not self.scheduler.wants(request_id):
                continue  # stopped, aborted or begun anew after this step was started
            try:
                if sampled.tokens[row] == NO_TOKEN:
                    raise NotFinite("the model's numbers for this request are not finite; they are not shared or kept")
                if has_token and self._deliver_token(request, sampled, row):
                    stopped[request_id] = "stop"
            except Exception as error:
                self._drop(request, error)
        return stopped

    def _deliver_token(self, request: LiveRequest, sampled: Sampled, row: int) -> bool:
        ends = request.accept(sampled, row)
        followers, request.followers = request.followers, []
        for follower in followers:  # also while draining: they are part of a request that was taken
            self._enter(follower)
        if not ends and len(request.tokens) < request.spec.max_tokens:
            request.sink(request.output(None))
        return ends

    def _drop(self, request: LiveRequest, error: Exception) -> None:
        """End one request of a step, for a reason of its own."""
        log.exception("request %s ends in an error", request.spec.request_id, exc_info=error)
        if isinstance(error, NotFinite):
            self.scheduler.distrust(request.spec.request_id)
        self.scheduler.abort(request.spec.request_id, time.monotonic())
        if not isinstance(error, RequestError):
            error = AnswerFailed(f"the answer could not be put together: {_short(error)}; try again")
        self._close(request, error)

    def _conclude(self, event: Finished, error: BaseException | None) -> None:
        request = self.live.get(event.request_id)
        if request is None:
            return
        if isinstance(error, RequestError):
            self._close(request, error)
        elif event.reason == "error":
            self._close(request, StepFailed(f"a step of this request failed: {_short(error)}; try again"))
        else:
            request.finish()
            self._close(request, request.output(event.reason))

    def give_up(self) -> None:
        """End the requests that no instance there is now could serve, and take no more of the kind."""
        unserved = self.scheduler.unserved
        self.scheduler.hopeless = bool(unserved)
        for request in [r for r in self.live.values() if needs(r.spec) & set(unserved)]:
            self.scheduler.abort(request.spec.request_id, time.monotonic())
            self._close(request, ServiceUnavailable(unserved_message(unserved)))
        for event in self.scheduler.give_up():
            self._conclude(event, ServiceUnavailable("no instance is left that could hold this request"))


def _short(error: BaseException | None) -> str:
    """The kind of an error; its text may hold addresses and paths, which belong in the log alone."""
    return type(error).__name__ if error is not None else "its instance was lost"
