"""The scheduler under random arrivals, aborts, completions, failures: books balance, and nothing waits for ever."""

import collections
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.audit import audit
from epdjax.serving.buckets import default_buckets
from epdjax.serving.errors import Overloaded, TooLong
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work, request_ids

BUCKETS = default_buckets(max_model_len=256, block_size=16, max_chunk=64, max_seqs=4, max_units=2, unit_sizes=(1, 2))


def make_scheduler(layout: str, **limits: int) -> Scheduler:
    """A small deployment; `layout` lists the roles of its instances."""
    instances = [
        InstanceSpec(f"{roles}{i}", roles, kv_blocks=20, mm_blocks=24, slots=4, encode_width=1, staging=2)
        for i, roles in enumerate(layout.split())
    ]
    return Scheduler(SchedulerConfig(BUCKETS, max_model_len=256, **limits), instances)


class Memory:
    """What lies in the KV blocks of every instance, and whether each step finds what it reads.

    Devices do what they are given in order, so a step reads and writes when it is started; what is moved is read then
    too, and written when the move has ended.
    """

    def __init__(self, specs: dict[str, RequestSpec]):
        self.specs = specs
        self.blocks: dict[tuple[str, int], dict[int, object]] = collections.defaultdict(dict)
        self.gathered: dict[int, list] = {}

    def content(self, request_id: str, position: int) -> object:
        """What the KV of a token is: that of its prompt, as far as others may have the same, or a request's own."""
        keys = self.specs[request_id].block_keys
        return (keys[position // 16], position % 16) if position // 16 < len(keys) else (request_id, position)

    def expect(self, instance: str, request_id: str, blocks: tuple[int, ...], end: int) -> None:
        for position in range(end):
            found = self.blocks[instance, blocks[position // 16]].get(position % 16)
            assert found == self.content(request_id, position), f"{request_id} reads {found} at {position}"

    def write(self, instance: str, request_id: str, blocks: tuple[int, ...], start: int, end: int) -> None:
        for position in range(start, end):
            self.blocks[instance, blocks[position // 16]][position % 16] = self.content(request_id, position)

    def run(self, work: Work) -> None:
        if isinstance(work, Prefill):
            for chunk in work.chunks:
                self.expect(work.instance, chunk.request_id, chunk.kv_blocks, chunk.start)
                end = chunk.start + chunk.length
                self.write(work.instance, chunk.request_id, chunk.kv_blocks, chunk.start, end)
        if isinstance(work, Decode):
            assert len({row.slot for row in work.sequences}) == len(work.sequences)
            for row in work.sequences:
                self.expect(work.instance, row.request_id, row.kv_blocks, row.position)
                self.write(work.instance, row.request_id, row.kv_blocks, row.position, row.position + 1)
        if isinstance(work, MoveKV):
            assert sum(len(part.blocks) for part in work.parts) <= BUCKETS.move_blocks[-1]
            self.gathered[work.work_id] = [
                [dict(self.blocks[work.source, block]) for block in part.source_blocks] for part in work.parts
            ]

    def land(self, work: Work) -> None:
        for part, contents in zip(getattr(work, "parts", ()), self.gathered.pop(work.work_id, ())):
            for block, content in zip(part.blocks, contents, strict=True):
                self.blocks[work.instance, block] = content


class Machine(RuleBasedStateMachine):
    """Devices finish work in order, lane by lane; everything else comes at random."""

    @initialize(
        layout=st.sampled_from(
            ["EPD", "E P D", "E PD", "EP D", "E E P P D D", "EPD EPD", "E P PD", "EP P D", "E EP P PD D", "E P ED"]
        )
    )
    def begin(self, layout: str) -> None:
        self.scheduler = make_scheduler(layout, max_requests=12, max_queued_units=40)
        self.lanes: dict[tuple[str, str], collections.deque[Work]] = {}
        self.now = 0.0
        self.serial = 0
        self.ended: dict[str, str] = {}
        self.live: set[str] = set()
        self.specs: dict[str, RequestSpec] = {}
        self.landed: set = set()
        self.tokens: collections.Counter[str] = collections.Counter()
        self.wanted: dict[str, int] = {}
        self.memory = Memory(self.specs)

    def start(self) -> None:
        self.now += 1
        for work in self.scheduler.next_work(self.now):
            self.check(work)
            self.memory.run(work)
            lane = "move" if isinstance(work, (MoveMM, MoveKV)) else "compute"
            self.lanes.setdefault((work.instance, lane), collections.deque()).append(work)

    def end(self, finished: list) -> None:
        for event in finished:
            assert event.request_id in self.live
            self.live.remove(event.request_id)
            self.ended[event.request_id] = event.reason
            if event.reason == "length":
                assert self.tokens[event.request_id] == self.wanted[event.request_id]

    def pop(self, index: int) -> Work:
        lanes = [lane for lane in sorted(self.lanes) if self.lanes[lane]]
        return self.lanes[lanes[index % len(lanes)]].popleft()

    def outstanding(self) -> bool:
        return any(self.lanes.values())

    @rule(
        prompt=st.integers(1, 150),
        answer=st.integers(1, 120),
        priority=st.integers(-1, 1),
        contents=st.lists(st.integers(0, 5), max_size=6),
        text=st.integers(0, 2),
        shares=st.booleans(),
    )
    def arrive(self, prompt: int, answer: int, priority: int, contents: list[int], text: int, shares: bool) -> None:
        """A request for some of six pictures and three texts, with or without the keys that let it share."""
        self.serial += 1
        units = [6 * content + 3 for content in contents]
        length = prompt + sum(units)
        spec = RequestSpec(
            f"r{self.serial}",
            length,
            answer,
            tuple(units),
            media_bytes=100 * len(units),
            unit_buckets=tuple(content % 2 for content in contents),
            unit_keys=tuple(("picture", content) for content in contents) if shares else (),
            unit_starts=tuple(prompt // 2 + sum(units[:i]) for i in range(len(units))),
            block_keys=tuple(("text", text, tuple(contents), i) for i in range(length // 16)) if shares else (),
            whole=tuple((prompt // 2 + sum(units[:i]), prompt // 2 + sum(units[: i + 1])) for i in range(len(units)))
            if text == 2
            else (),
            priority=priority,
        )
        try:
            self.scheduler.add(spec, self.now)
        except Overloaded:
            return
        except TooLong:
            assert spec.prompt_tokens + spec.max_tokens > 200  # the pools hold 320 tokens of KV, 384 of MM
            return
        self.live.add(spec.request_id)
        self.specs[spec.request_id] = spec
        self.wanted[spec.request_id] = answer
        self.start()

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 100))
    def abort(self, pick: int) -> None:
        request_id = sorted(self.live)[pick % len(self.live)]
        assert self.scheduler.abort(request_id, self.now)
        assert not self.scheduler.abort(request_id, self.now)
        self.live.remove(request_id)
        self.start()

    @precondition(lambda self: self.outstanding())
    @rule(pick=st.integers(0, 100), stop=st.booleans())
    def finish(self, pick: int, stop: bool) -> None:
        self.finish_one(self.pop(pick), stop)
        self.start()

    def check(self, work: Work) -> None:
        """Nothing is run before its MM tokens are there, or twice; what is encoded is of one size."""
        if isinstance(work, Encode):
            assert len({unit.bucket for unit in work.units}) == 1
            assert len({(unit.target, unit.key) for unit in work.units}) == len(work.units)
            assert all(unit.request_id in self.live for unit in work.units)
        if isinstance(work, Prefill):
            for chunk in work.chunks:
                spec = self.specs[chunk.request_id]
                assert 0 < chunk.length <= BUCKETS.max_chunk
                end = chunk.start + chunk.length
                for i, start in enumerate(spec.unit_starts):
                    landed = (work.instance, spec.unit_key(i)) in self.landed
                    assert landed or end <= start, f"{chunk} before unit {i}"
                assert not any(first < end < last for first, last in spec.whole)

    def finish_one(self, work: Work, stop: bool) -> None:
        self.memory.land(work)
        if isinstance(work, MoveMM):
            self.landed |= {(work.instance, row.unit.key) for row in work.rows}
        stopped = []
        if isinstance(work, Prefill):
            sampled = [chunk.request_id for chunk in work.chunks if chunk.is_last]
        else:
            sampled = list(request_ids(work)) if isinstance(work, Decode) else []
        for request_id in sampled:
            if request_id in self.live:
                self.tokens[request_id] += 1
        if stop and sampled and sampled[0] in self.live:
            stopped = [sampled[0]]
        self.end(self.scheduler.finished(work, self.now, stopped))

    @precondition(lambda self: self.outstanding())
    @rule(pick=st.integers(0, 100))
    def fail(self, pick: int) -> None:
        work = self.pop(pick)
        self.memory.gathered.pop(work.work_id, None)
        self.end(self.scheduler.failed(work, self.now))
        self.start()

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 100))
    def lose_instance_pools(self, pick: int) -> None:
        names = sorted(self.scheduler.instances)
        self.end(self.scheduler.lost(names[pick % len(names)], self.now))
        self.start()

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            audit(self.scheduler)
            assert set(self.scheduler.requests) == self.live

    def teardown(self) -> None:
        """With no more arrivals everything ends, in a number of steps bounded by the work there is."""
        if not hasattr(self, "scheduler"):
            return
        budget = 200 + 400 * len(self.live)
        while self.live or self.outstanding():
            assert self.outstanding(), f"stuck: {self.scheduler.counts()}"
            self.finish_one(self.pop(0), stop=False)
            self.start()
            budget -= 1
            assert budget > 0, f"does not end: {self.scheduler.counts()}"
        assert self.scheduler.idle
        audit(self.scheduler)


Machine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


def run_alone(layout: str, spec: RequestSpec) -> list[Work]:
    """All work of a single request, in order."""
    scheduler = make_scheduler(layout)
    scheduler.add(spec, 0.0)
    done, pending = [], collections.deque(scheduler.next_work(0.0))
    while pending:
        work = pending.popleft()
        done.append(work)
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    assert scheduler.idle
    return done


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


def drive(scheduler: Scheduler) -> list[Work]:
    """Run everything to its end, in order."""
    done, pending = [], collections.deque(scheduler.next_work(0.0))
    while pending:
        work = pending.popleft()
        done.append(work)
        scheduler.finished(work, 0.0)
        pending.extend(scheduler.next_work(0.0))
    return done


def picture(request_id: str, *contents: str, **more: Any) -> RequestSpec:
    """A request about some pictures of 16 tokens each."""
    keys = tuple(("picture", content) for content in contents)
    return RequestSpec(request_id, 100, 2, (16,) * len(contents), unit_keys=keys, **more)


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
    scheduler.lost("P1", 0.0)
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
