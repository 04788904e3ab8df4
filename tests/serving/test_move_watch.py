"""How long moves have been under way, and what becomes of those that do not end."""

import math

from epdjax.serving.audit import audit
from epdjax.serving.move_watch import MoveWatch
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import MoveKV, MoveMM, Prefill
from tests.serving.scheduling import drive, make_scheduler, picture


def test_a_move_is_under_way_when_the_steps_before_it_have_ended() -> None:
    watch = MoveWatch()
    move, other = MoveKV(7, "P", "D", ()), MoveMM(8, "E", "P", 1, ())
    watch.began(move, (5, 6), 10.0)
    watch.began(other, (), 11.0)
    assert watch.since == 11.0 and watch.overdue(15.0, 3.0) == [other]
    watch.ended(5, 12.0)
    watch.ended(6, 40.0)
    assert watch.overdue(42.0, 3.0) == [other] and watch.overdue(43.1, 3.0) == [move, other]
    watch.ended(8, 43.0)
    watch.ended(7, 43.0)
    assert watch.since == math.inf and watch.overdue(1e9, 0.0) == []


def until_a_move(scheduler, kind):
    """Run what there is until a move of a kind has been started; returns it and what else is running."""
    running = scheduler.next_work(0.0)
    while not any(isinstance(work, kind) for work in running):
        scheduler.finished(running.pop(0), 0.0)
        running += scheduler.next_work(0.0)
    (move,) = [work for work in running if isinstance(work, kind)]
    return move, [work for work in running if work is not move]


def test_a_move_of_kv_that_does_not_end_is_made_again() -> None:
    scheduler = make_scheduler("E P D D")
    scheduler.add(RequestSpec("a", 40, 4), 0.0)
    move, running = until_a_move(scheduler, MoveKV)
    assert not running and scheduler.overdue_moves(10.0, 10.0) == []
    assert scheduler.overdue_moves(10.1, 10.0) == [move]
    assert scheduler.failed(move, 10.1) == []
    audit(scheduler)
    assert all(not scheduler.instances[name].pools["kv"].users for name in ("P1", "D2", "D3"))
    assert not scheduler.is_running(move), "what it brings will not be written any more"
    done = drive(scheduler)
    again = next(work for work in done if isinstance(work, MoveKV))
    assert again.instance != move.instance and scheduler.idle


def test_a_move_of_mm_tokens_that_does_not_end_is_made_again() -> None:
    scheduler = make_scheduler("E P D")
    scheduler.add(picture("a", "cat"), 0.0)
    move, running = until_a_move(scheduler, MoveMM)
    assert not any(isinstance(work, Prefill) and work.chunks[0].is_last for work in running)
    scheduler.failed(move, 10.0)
    audit(scheduler)
    assert not scheduler.instances["P1"].arrivals and not scheduler.is_staged(move.encode_id)
    for work in running:
        scheduler.finished(work, 10.0)
    assert any(isinstance(work, MoveMM) for work in drive(scheduler)) and scheduler.idle


def test_the_third_time_its_request_ends() -> None:
    scheduler = make_scheduler("E P D")
    scheduler.add(RequestSpec("a", 40, 4), 0.0)
    ends = []
    for _ in range(3):
        move, _ = until_a_move(scheduler, MoveKV)
        ends += scheduler.failed(move, 0.0)
    assert [(event.request_id, event.reason) for event in ends] == [("a", "error")]
    assert scheduler.idle
    audit(scheduler)
