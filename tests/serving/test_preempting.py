"""Who makes room for whom, where sequences go, and what of it costs nothing."""

from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, Encode, MoveKV, Prefill, Work
from tests.serving.scheduling import drive, make_scheduler, simulate


def rows(works: list[Work], request_id: str) -> list[int]:
    """Positions that decode steps ran for a request, in order."""
    return [r.position for w in works if isinstance(w, Decode) for r in w.sequences if r.request_id == request_id]


def starts(works: list[Work], request_id: str) -> list[int]:
    """Where each of its prefill chunks began."""
    return [c.start for w in works if isinstance(w, Prefill) for c in w.chunks if c.request_id == request_id]


def test_nothing_is_reserved_for_answers_that_stay_short() -> None:
    """20 blocks: three requests of 7 blocks at most would not fit together, and do, since they need 2 each to start."""
    scheduler = make_scheduler("EPD")
    for name in "abc":
        scheduler.add(RequestSpec(name, 30, 80), 0.0)
    works = scheduler.next_work(0.0)
    begun = {chunk.request_id for work in works if isinstance(work, Prefill) for chunk in work.chunks}
    for work in works:
        scheduler.finished(work, 0.0)
    for work in scheduler.next_work(0.0):
        begun |= {chunk.request_id for chunk in getattr(work, "chunks", ())}
    assert begun == {"a", "b", "c"}


def test_the_last_makes_room_and_goes_on_where_it_was() -> None:
    """Three sequences that come to need 9 blocks each, of 20."""
    scheduler = make_scheduler("EPD")
    for name in "abc":
        scheduler.add(RequestSpec(name, 60, 80), 0.0)
    works = drive(scheduler)
    assert scheduler.preemptions == 1
    assert rows(works, "a") == rows(works, "b") == list(range(60, 139))
    assert starts(works, "a") == [0]
    again = starts(works, "c")[1]
    assert again == 0, "its answer so far is prefilled with the prompt"
    ran = rows(works, "c")
    assert len(ran) == 78 and len(set(ran)) == 78, "the step that prefill took over is not run twice"
    assert scheduler.idle


def test_priority_decides_who_makes_room() -> None:
    scheduler = make_scheduler("EPD")
    for name, priority in (("a", 1), ("b", 0), ("c", 0)):
        scheduler.add(RequestSpec(name, 60, 80, priority=priority), 0.0)
    works = drive(scheduler)
    assert [name for name in "abc" if len(starts(works, name)) > 1] == ["a"]


def test_a_sibling_with_room_takes_the_sequence_as_it_is() -> None:
    """Two long answers share a D instance that has no room for both; the other one has become empty meanwhile."""
    scheduler = make_scheduler("E P D D", assignment="decode=round-robin")
    log: list = []
    arrivals = [(0.0, RequestSpec("a", 60, 120)), (0.0, RequestSpec("short", 60, 2)), (0.0, RequestSpec("b", 60, 120))]
    simulate(scheduler, arrivals, log)
    works = [work for _, work in log]
    assert scheduler.preemptions == 1
    moves = [work for work in works if isinstance(work, MoveKV) and work.source == "D2"]
    assert [(move.instance, part.request_id) for move in moves for part in move.parts] == [("D3", "b")]
    assert starts(works, "b") == [0], "nothing is prefilled again"
    assert rows(works, "b") == list(range(60, 179))


def test_prompts_make_room_for_sequences_and_keep_their_pictures() -> None:
    """A long prompt holds most of the pool while a sequence with priority grows."""
    scheduler = make_scheduler("EPD")
    log: list = []
    picture = RequestSpec("late", 200, 2, (16,), unit_keys=("cat",), unit_starts=(190,))
    simulate(scheduler, [(0.0, RequestSpec("first", 30, 200, priority=-1)), (0.9, picture)], log)
    works = [work for _, work in log]
    assert rows(works, "first") == list(range(30, 229))
    assert sum(isinstance(work, Encode) for work in works) == 1


def test_kv_moves_while_the_rest_is_prefilled_and_for_many_at_a_time() -> None:
    scheduler = make_scheduler("E P D")
    log: list = []
    arrivals = [(0.0, RequestSpec(name, 60, 3)) for name in "abcd"] + [(2.0, RequestSpec("z", 200, 2))]
    simulate(scheduler, arrivals, log, move_s=0.2)
    moves = [work for _, work in log if isinstance(work, MoveKV)]
    assert max(len(move.parts) for move in moves) > 1
    long = [part for move in moves for part in move.parts if part.request_id == "z"]
    assert [len(part.blocks) for part in long] == [4, 4, 5], "two chunks one by one, and what came up meanwhile"
    assert [part.is_last for part in long] == [False, False, True]
    assert scheduler.moves.stats.early_blocks == 8
