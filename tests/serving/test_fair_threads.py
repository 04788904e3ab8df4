"""Threads that clients share: bounded, in turns, and nothing is lost when they close."""

import functools
import threading
import weakref
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.serving.errors import Overloaded, ServiceUnavailable
from epdjax.serving.fair_threads import FairThreads
from tests.serving.deployments import eventually


class Held:
    """What a job holds."""


def held_up(threads: FairThreads) -> threading.Event:
    """Keeps one thread busy until the event is set."""
    release, busy = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        release.wait(60)

    threads.submit("first", wait)
    assert busy.wait(60)
    return release


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_a_client_waits_for_one_job_of_each_other_client(clients: list[str]) -> None:
    threads = FairThreads("test", 1, 1000, "wait")
    release = held_up(threads)
    order: list[str] = []
    jobs = [threads.submit(client, lambda client=client: order.append(client)) for client in clients]
    release.set()
    for job in jobs:
        job.result(60)
    threads.close()
    assert sorted(order) == sorted(clients)
    last: dict[str, int] = {}
    for index, client in enumerate(order):
        since = order[last.get(client, -1) + 1 : index]
        assert all(since.count(other) <= 1 for other in set(since)), order
        last[client] = index


def test_what_waits_is_bounded_and_no_client_may_take_it_all() -> None:
    threads = FairThreads("test", 1, 4, "jobs wait")
    release = held_up(threads)
    jobs = [threads.submit("a", int) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 jobs wait"):
        threads.submit("a", int)
    jobs.append(threads.submit("b", int))
    with pytest.raises(Overloaded, match="4 jobs wait"):
        threads.submit("c", int)
    release.set()
    assert [job.result(60) for job in jobs] == [0] * 4
    assert threads.submit("c", int).result(60) == 0 and threads.waiting == 0
    threads.close()


def test_nothing_may_wait_where_that_is_said() -> None:
    threads = FairThreads("test", 1, 0, "wait")
    release = held_up(threads)
    with pytest.raises(Overloaded):
        threads.submit("b", int)
    release.set()
    eventually(lambda: threads._idle == 1)
    assert threads.submit("b", int).result(60) == 0
    threads.close()


def test_errors_reach_who_asked_and_the_thread_goes_on() -> None:
    threads = FairThreads("test", 1, 4, "wait")
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit("a", lambda: int("x")).result(60)
    assert threads.submit("a", int).result(60) == 0
    threads.close()


def test_what_was_cancelled_is_never_run() -> None:
    threads = FairThreads("test", 1, 4, "wait")
    release = held_up(threads)
    job = threads.submit("a", lambda: pytest.fail("it was run"))
    assert job.cancel()
    release.set()
    assert threads.submit("b", int).result(60) == 0
    threads.close()


def test_what_was_cancelled_holds_neither_room_nor_memory() -> None:
    threads = FairThreads("test", 1, 2, "wait")
    release = held_up(threads)
    for _ in range(50):
        held = Held()
        alive = weakref.ref(held)
        job = threads.submit("a", functools.partial(id, held))
        del held
        assert alive() is not None and job.cancel()
        del job
        assert alive() is None and threads.waiting == 0
    release.set()
    threads.close()


def test_an_idle_thread_holds_nothing_of_its_last_job() -> None:
    threads = FairThreads("test", 1, 2, "wait")
    held = Held()
    alive = weakref.ref(held)
    assert threads.submit("a", functools.partial(id, held)).result(60)
    del held
    eventually(lambda: alive() is None)
    threads.close()


def test_some_threads_are_left_to_others() -> None:
    threads = FairThreads("test", 8, 100, "wait")
    release = threading.Event()
    mine = [threads.submit("a", lambda: release.wait(60)) for _ in range(20)]
    eventually(lambda: threads._running["a"] == 6)
    assert threads.submit("b", int).result(60) == 0
    assert threads._running["a"] == 6
    release.set()
    assert all(job.result(60) for job in mine)
    threads.close()


def test_closing_tells_those_who_wait() -> None:
    threads = FairThreads("test", 1, 4, "wait")
    release = held_up(threads)
    waiting: Future[int] = threads.submit("a", int)
    threads.close()
    with pytest.raises(ServiceUnavailable):
        waiting.result(60)
    with pytest.raises(ServiceUnavailable):
        threads.submit("a", int)
    release.set()
    eventually(lambda: threads._threads == 0)
