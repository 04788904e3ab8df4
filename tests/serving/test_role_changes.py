"""The scheduler's side of role switches, step by step."""

from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, MoveKV, Prefill
from tests.serving.scheduling import drive, make_instance, make_scheduler, picture


def text(name: str, prompt: int = 20, answer: int = 8) -> RequestSpec:
    return RequestSpec(name, prompt, answer)


def decoding(layout: str, *specs: RequestSpec):
    """A scheduler whose requests are being decoded, and the work that is running."""
    scheduler = make_scheduler(layout)
    for spec in specs:
        scheduler.add(spec, 0.0)
    running = scheduler.next_work(0.0)
    while scheduler.counts() != {"decoding": len(specs)}:
        scheduler.finished(running.pop(0), 0.0)
        running += scheduler.next_work(0.0)
    return scheduler, running


def finish(scheduler, running) -> list:
    """Run everything to its end; returns all work."""
    done = []
    while running:
        done.append(running[0])
        scheduler.finished(running.pop(0), 0.0)
        running += scheduler.next_work(0.0)
    assert scheduler.idle
    return done


def test_sequences_move_to_a_sibling() -> None:
    scheduler, running = decoding("E P D D", text("a"))
    (name,) = [d for d in ("D2", "D3") if scheduler.instances[d].running]
    scheduler.roles.offload(name, "D", keeps_kv=True)
    done = finish(scheduler, running + scheduler.next_work(0.0))
    assert any(isinstance(work, MoveKV) and work.source == name for work in done)
    assert not any(isinstance(work, Prefill) for work in done), "nothing is run again"
    assert scheduler.roles.is_evacuated(name)


def test_without_a_sibling_they_wait_where_their_kv_is() -> None:
    """The one D instance prefills from now on, and the P instance decodes: the sequence moves back to where it came
    from."""
    scheduler, running = decoding("E P D", text("a"))
    scheduler.roles.offload("D2", "D", keeps_kv=True)
    scheduler.roles.evict("D2")
    running += scheduler.next_work(0.0)
    while not scheduler.roles.is_evacuated("D2"):
        scheduler.finished(running.pop(0), 0.0)
    assert scheduler.counts() == {"move_queued": 1}
    scheduler.roles.onload(make_instance("D2", "P"))
    scheduler.roles.offload("P1", "P", keeps_kv=True)
    assert scheduler.roles.is_evacuated("P1")
    scheduler.roles.onload(make_instance("P1", "D"))
    done = finish(scheduler, scheduler.next_work(0.0))
    assert [type(work) for work in done[:2]] == [MoveKV, Decode]
    assert (done[0].source, done[0].instance) == ("D2", "P1")


def test_what_was_prefilled_here_is_decoded_here() -> None:
    """P becomes D while a sequence waits there for room: nothing is moved."""
    scheduler = make_scheduler("E P P D")
    scheduler.instances["D3"].closing = "D"  # it has no room
    scheduler.add(text("a"), 0.0)
    (work,) = scheduler.next_work(0.0)
    scheduler.finished(work, 0.0)
    assert scheduler.counts() == {"move_queued": 1}
    scheduler.roles.offload(work.instance, "P", keeps_kv=True)
    assert scheduler.roles.is_evacuated(work.instance)
    scheduler.roles.onload(make_instance(work.instance, "D"))
    done = finish(scheduler, scheduler.next_work(0.0))
    assert {type(work) for work in done} == {Decode}


def test_queued_units_go_to_others_or_wait() -> None:
    scheduler = make_scheduler("E E P D")
    for number in range(6):
        scheduler.add(picture(f"r{number}", *(f"{number}/{i}" for i in range(3))), 0.0)
    running = scheduler.next_work(0.0)
    for name in ("E0", "E1"):
        scheduler.roles.offload(name, "E", keeps_kv=False)
    assert scheduler.encoding.homeless
    running += scheduler.next_work(0.0)
    scheduler.roles.enter(make_instance("new", "E"))
    done = finish(scheduler, running + scheduler.next_work(0.0))
    assert {work.instance for work in done if hasattr(work, "units")} >= {"new"}
    assert all(scheduler.roles.is_evacuated(name) for name in ("E0", "E1"))


def test_a_death_costs_only_what_was_lost() -> None:
    """The D instance dies while KV is on its way to it: the prompt is not prefilled again."""
    scheduler = make_scheduler("E P D D")
    scheduler.add(text("a", prompt=40), 0.0)
    done = []
    while not any(isinstance(work, MoveKV) for work in done):
        (work,) = scheduler.next_work(0.0)
        done.append(work)
        if not isinstance(work, MoveKV):
            scheduler.finished(work, 0.0)
    move = done[-1]
    scheduler.roles.take_out(move.instance, 0.0)
    assert not scheduler.is_running(move)
    rest = finish(scheduler, scheduler.next_work(0.0))
    assert isinstance(rest[0], MoveKV) and rest[0].instance != move.instance
    assert not any(isinstance(work, Prefill) for work in rest)


def test_a_new_decoder_takes_its_share() -> None:
    scheduler, running = decoding("E P D", *(text(name, answer=30) for name in "abcd"))
    scheduler.roles.enter(make_instance("new", "D"))
    for _ in range(12):
        scheduler.finished(running.pop(0), 0.0)
        running += scheduler.next_work(0.0)
    assert [len(scheduler.instances[name].running) for name in ("D2", "new")] == [2, 2]
    finish(scheduler, running)


def test_who_could_serve() -> None:
    scheduler, running = decoding("E P D", text("a", prompt=200))
    small = make_instance("D2", "D")
    assert scheduler.roles.could_serve([make_instance("P1", "P"), small])
    assert not scheduler.roles.could_serve([make_instance("E0", "E"), small])
    assert scheduler.give_up() == []
    finish(scheduler, running)
    assert drive(scheduler) == []


def test_a_full_pool_where_others_are_decoded_on() -> None:
    """An instance that gives up prefill alone, and has had its time, is full: one of its sequences makes room for the
    other by going, not by waiting where it is."""
    scheduler = make_scheduler("EP PD")
    for name in "ab":
        scheduler.add(text(name, prompt=60, answer=120), 0.0)
    scheduler.roles.offload("PD1", "P", keeps_kv=True)
    scheduler.roles.evict("PD1")
    done = drive(scheduler)
    assert scheduler.preemptions == 1
    assert [chunk.start for work in done if isinstance(work, Prefill) for chunk in work.chunks].count(0) == 3
    assert scheduler.idle and scheduler.roles.is_evacuated("PD1")


def test_who_can_be_decoded_where_it_is_waits_for_nobody() -> None:
    """The only D instance is about to give this up, and does not after all. What was prefilled there meanwhile has the
    room that the first in order, which was prefilled elsewhere, waits for."""
    scheduler = make_scheduler("EPD P")
    scheduler.roles.offload("EPD0", "D", keeps_kv=True)
    for name, priority in (("here", 1), ("there", 0)):
        scheduler.add(RequestSpec(name, 190, 20, priority=priority), 0.0)
    running = scheduler.next_work(0.0)
    while scheduler.counts() != {"move_queued": 2}:
        scheduler.finished(running.pop(0), 0.0)
        running += scheduler.next_work(0.0)
    assert {r.kv_source for r in scheduler.requests.values()} == {"EPD0", "P1"}
    assert scheduler.requests["here"].kv_source == "EPD0"
    scheduler.roles.resume("EPD0")
    done = finish(scheduler, running + scheduler.next_work(0.0))
    assert isinstance(done[0], Decode), "which makes the room"
