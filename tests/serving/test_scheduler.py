"""What the scheduler does with a few requests: stages, room, sharing, overlap."""

import collections

import pytest

from epdjax.serving.audit import audit
from epdjax.serving.errors import Overloaded, TooLong
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work
from tests.serving.scheduling import drive, make_scheduler, picture, run_alone


def test_a_request_passes_through_all_stages() -> None:
    works = run_alone("E P D", RequestSpec("r", 100, 3, unit_tokens=(16, 16, 16)))
    kinds = [type(work).__name__ for work in works]
    assert kinds.count("Encode") == 2  # three units, two per step
    assert kinds.count("MoveMM") == 2
    assert kinds.count("Prefill") == 2  # 64 + 36 tokens
    assert kinds.count("MoveKV") == 2  # after the first chunk, and with the rest the first token
    assert kinds.count("Decode") == 2  # the first token comes from prefill
    positions = [row.position for work in works if isinstance(work, Decode) for row in work.sequences]
    assert positions == [100, 101]


def test_a_monolith_moves_no_kv() -> None:
    works = run_alone("EPD", RequestSpec("r", 20, 2, unit_tokens=(16,)))
    assert [type(work) for work in works] == [Encode, MoveMM, Prefill, Decode]


def test_text_only_requests_start_at_prefill() -> None:
    assert [type(work) for work in run_alone("E P D", RequestSpec("r", 20, 1))] == [Prefill]


def test_units_of_one_request_spread_over_all_encoders() -> None:
    scheduler = make_scheduler("E E E P D")
    scheduler.add(RequestSpec("r", 100, 1, unit_tokens=(16,) * 6), 0.0)
    encodes = [work for work in scheduler.next_work(0.0) if isinstance(work, Encode)]
    assert sorted((work.instance, len(work.units)) for work in encodes) == [("E0", 2), ("E1", 2), ("E2", 2)]


def test_what_can_never_fit_is_refused_by_the_limit_that_says_so() -> None:
    scheduler = make_scheduler("E P D")
    with pytest.raises(TooLong, match="context of 256"):
        scheduler.add(RequestSpec("a", 200, 100), 0.0)
    with pytest.raises(TooLong, match="--mm-blocks"):
        scheduler.add(RequestSpec("b", 100, 1, unit_tokens=(1,) * 25), 0.0)


def test_full_queues_refuse_with_a_time_to_retry() -> None:
    scheduler = make_scheduler("E P D", max_requests=2, max_queued_units=3)
    scheduler.add(RequestSpec("a", 50, 1, unit_tokens=(16, 16)), 0.0)
    with pytest.raises(Overloaded) as error:
        scheduler.add(RequestSpec("b", 50, 1, unit_tokens=(16, 16)), 0.0)
    assert error.value.retry_after_s > 0
    scheduler.add(RequestSpec("c", 50, 1), 0.0)
    with pytest.raises(Overloaded, match="2 requests"):
        scheduler.add(RequestSpec("d", 50, 1), 0.0)
    audit(scheduler)


def waiting_for_room(layout: str, *specs: RequestSpec) -> tuple[Scheduler, list[Work]]:
    """Requests that arrive in order; returns the work started at once."""
    scheduler = make_scheduler(layout)
    works = []
    for spec in specs:
        scheduler.add(spec, 0.0)
        works += scheduler.next_work(0.0)
    return scheduler, works


def test_an_older_prompt_is_not_overtaken_by_one_that_fits() -> None:
    """20 KV blocks: the first takes 12, the second needs 12 and must wait, the third would fit but is younger."""
    specs = [RequestSpec("a", 180, 3), RequestSpec("b", 180, 3), RequestSpec("c", 16, 1)]
    scheduler, works = waiting_for_room("EPD", *specs)
    assert {chunk.request_id for work in works if isinstance(work, Prefill) for chunk in work.chunks} == {"a"}
    scheduler.abort("b", 0.0)
    started = [work for work in scheduler.next_work(0.0) if isinstance(work, Prefill)]
    for work in [w for w in works if isinstance(w, Prefill)]:
        scheduler.finished(work, 0.0)
        started += [w for w in scheduler.next_work(0.0) if isinstance(w, Prefill)]
    assert "c" in {chunk.request_id for work in started for chunk in work.chunks}


def test_room_goes_to_the_oldest_whether_it_comes_from_here_or_elsewhere() -> None:
    """A PD instance with room for one sequence: a moved one that is older than its own prompts goes first."""
    scheduler = make_scheduler("E P PD")
    scheduler.add(RequestSpec("moved", 150, 106), 0.0)  # 16 of 20 blocks, prefilled on P1
    scheduler.add(RequestSpec("own", 150, 106), 0.0)  # assigned to PD2, the less loaded
    assert [scheduler.requests[r].p_name for r in ("moved", "own")] == ["P1", "PD2"]
    pending, decoded = collections.deque(scheduler.next_work(0.0)), []
    while pending:
        work = pending.popleft()
        if isinstance(work, Decode):
            decoded += [row.request_id for row in work.sequences]
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    assert scheduler.idle and set(decoded) == {"moved", "own"}


def test_stages_of_a_monolith_take_turns() -> None:
    """A long queue of prompts does not hold up the sequences that are being decoded."""
    scheduler = make_scheduler("EPD")
    scheduler.add(RequestSpec("first", 10, 40), 0.0)
    pending = collections.deque(scheduler.next_work(0.0))
    for i in range(12):
        scheduler.add(RequestSpec(f"later-{i}", 60, 1), 0.0)
    kinds = []
    while pending:
        work = pending.popleft()
        kinds.append(type(work))
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    between = "".join("P" if kind is Prefill else "D" for kind in kinds)
    assert "PPP" not in between


def test_a_picture_is_encoded_once() -> None:
    scheduler = make_scheduler("E P D")
    for i in range(3):
        scheduler.add(picture(f"r{i}", "cat"), 0.0)
    scheduler.add(picture("twice", "dog", "cat", "dog"), 0.0)
    works = drive(scheduler)
    encoded = [unit.key for work in works if isinstance(work, Encode) for unit in work.units]
    assert sorted(encoded) == [("picture", "cat"), ("picture", "dog")]
    scheduler.add(picture("later", "cat"), 0.0)
    assert not any(isinstance(work, (Encode, MoveMM)) for work in drive(scheduler))
    assert scheduler.idle
    audit(scheduler)


def test_who_waits_for_a_picture_inherits_it() -> None:
    """The request whose data would have been encoded leaves; another one that waits for the same content takes over."""
    scheduler = make_scheduler("E P D")
    scheduler.add(picture("busy", *"abcdefgh"), 0.0)  # keeps the encoder and its staging busy
    first = scheduler.next_work(0.0)
    scheduler.add(picture("owner", "cat"), 0.0)
    scheduler.add(picture("heir", "cat"), 0.0)
    scheduler.next_work(0.0)
    scheduler.abort("owner", 0.0)
    audit(scheduler)
    pending, encoded = collections.deque(first), []
    while pending:
        work = pending.popleft()
        encoded += [unit for unit in getattr(work, "units", ()) if unit.key == ("picture", "cat")]
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    assert [unit.request_id for unit in encoded] == ["heir"]
    assert scheduler.idle
    audit(scheduler)


def test_a_shared_beginning_is_run_once() -> None:
    keys = tuple(("system prompt", i) for i in range(6))
    scheduler = make_scheduler("E P D")
    scheduler.add(RequestSpec("first", 100, 2, block_keys=keys), 0.0)
    drive(scheduler)
    scheduler.add(RequestSpec("second", 100, 2, block_keys=(*keys[:4], "other", "tail")), 0.0)
    [prefill] = [work for work in drive(scheduler) if isinstance(work, Prefill)]
    [chunk] = prefill.chunks
    assert (chunk.start, chunk.length, chunk.cached) == (64, 36, 64)
    scheduler.add(RequestSpec("again", 96, 2, block_keys=keys), 0.0)
    [prefill] = [work for work in drive(scheduler) if isinstance(work, Prefill)]
    assert prefill.chunks[0].start == 80, "one token at least is run"
    audit(scheduler)


def test_lost_pools_are_not_shared() -> None:
    keys = tuple(("system prompt", i) for i in range(6))
    scheduler = make_scheduler("E P D")
    scheduler.add(picture("first", "cat", block_keys=keys), 0.0)
    drive(scheduler)
    scheduler.lost("P1")
    scheduler.add(picture("second", "cat", block_keys=keys), 0.0)
    works = drive(scheduler)
    assert any(isinstance(work, Encode) for work in works)
    assert next(work for work in works if isinstance(work, Prefill)).chunks[0].start == 0
    audit(scheduler)


def test_prefill_starts_while_pictures_are_encoded() -> None:
    """64 tokens are a chunk: the first needs no picture, the second needs the first one only."""
    scheduler = make_scheduler("E P D")
    spec = RequestSpec("r", 200, 1, (16, 16, 16), unit_starts=(64, 130, 160))
    scheduler.add(spec, 0.0)
    begun = scheduler.next_work(0.0)
    assert [type(work) for work in begun] == [Encode, Prefill]
    assert begun[1].chunks[0].length == 64
    scheduler.finished(begun[1], 0.0)
    [early] = scheduler.next_work(0.0)
    assert isinstance(early, MoveKV) and len(early.parts[0].blocks) == 4 and not early.parts[0].is_last
    scheduler.finished(begun[0], 0.0)  # the first two pictures
    move, third = scheduler.next_work(0.0)
    assert isinstance(third, Encode) and len(third.units) == 1
    scheduler.finished(move, 0.0)
    [prefill] = scheduler.next_work(0.0)
    assert (prefill.chunks[0].start, prefill.chunks[0].length) == (64, 64)
