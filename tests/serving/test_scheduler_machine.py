"""The scheduler under random arrivals, aborts, completions, failures: books balance, every step finds the KV it reads,
and nothing waits for ever."""

import collections
import math
from collections.abc import Callable
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epdjax.serving.audit import audit
from epdjax.serving.errors import Overloaded, TooLong
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work, request_ids
from tests.serving.scheduling import BUCKETS, make_instance, make_scheduler

ORDERS = ("fcfs", "fair")
LAYOUTS = ["EPD", "E P D", "E PD", "EP D", "E E P P D D", "EPD EPD", "E P PD", "EP P D", "E EP P PD D", "E P ED"]
ROLES = ["E", "P", "D", "EP", "PD", "ED", "EPD", ""]


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

    @initialize(layout=st.sampled_from(LAYOUTS), order=st.sampled_from(ORDERS))
    def begin(self, layout: str, order: str) -> None:
        self.scheduler = make_scheduler(layout, max_requests=12, max_queued_units=40, order=order)
        self.lanes: dict[tuple[str, str], collections.deque[Work]] = {}
        self.now = 0.0
        self.serial = 0
        self.ended: dict[str, str] = {}
        self.live: set[str] = set()
        self.specs: dict[str, RequestSpec] = {}
        self.landed: set = set()
        self.changing: tuple = ()
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
            client="aaab"[self.serial % 4],
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

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 100))
    def preempt(self, pick: int) -> None:
        self.scheduler.preempt(sorted(self.live)[pick % len(self.live)])
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
            if self.scheduler.wants(request_id):
                self.tokens[request_id] += 1
        if stop and sampled and self.scheduler.wants(sampled[0]):
            stopped = [sampled[0]]
        self.end(self.scheduler.finished(work, self.now, stopped))

    @precondition(lambda self: self.outstanding())
    @rule(pick=st.integers(0, 100))
    def fail(self, pick: int) -> None:
        work = self.pop(pick)
        self.memory.gathered.pop(work.work_id, None)
        self.end(self.scheduler.failed(work, self.now))
        self.start()

    def under_way(self) -> list[Work]:
        return [work for lane in self.lanes.values() for work in lane if isinstance(work, (MoveMM, MoveKV))]

    @precondition(lambda self: self.under_way())
    @rule(pick=st.integers(0, 100))
    def hang(self, pick: int) -> None:
        """A move does not end in time. It is void from then on: what comes of it is not looked at, so it never lands in
        a block that somebody else has meanwhile."""
        moves = self.under_way()
        work = moves[pick % len(moves)]
        assert self.scheduler.overdue_moves(self.now, 1e6) == []
        behind = {
            step.work_id
            for step in self.lanes.get((work.source, "compute"), ())
            if isinstance(work, MoveKV) and step.work_id < work.work_id
        }
        assert (work in self.scheduler.overdue_moves(self.now + 1e6, 1e5)) == (not behind)
        assert behind or self.scheduler.move_watch.since <= self.now
        self.lanes[work.instance, "move"].remove(work)
        self.memory.gathered.pop(work.work_id, None)
        self.end(self.scheduler.failed(work, self.now))
        assert not self.scheduler.is_running(work)
        assert work not in self.scheduler.overdue_moves(math.inf, 0.0)
        self.start()

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 100))
    def lose_instance_pools(self, pick: int) -> None:
        names = sorted(self.scheduler.instances)
        lost = names[pick % len(names)]
        self.forget(lost, mm=True)
        self.scheduler.lost(lost)
        self.start()

    @precondition(lambda self: not self.changing)
    @rule(
        pick=st.integers(0, 100),
        roles=st.sampled_from(["E", "P", "D", "EP", "PD", "ED", "EPD", ""]),
        same=st.booleans(),
    )
    def offload(self, pick: int, roles: str, same: bool) -> None:
        """Any instance, to any roles; without roles it goes. `same`: its KV pool stays as it is, if it has one."""
        names = sorted(self.scheduler.instances)
        ledger = self.scheduler.instances[names[pick % len(names)]]
        others = "".join(other.spec.roles for other in self.scheduler.instances.values() if other is not ledger)
        if set(others + roles) != set("EPD") or roles == ledger.spec.roles:
            return
        keeps = same and all(set("PD") & set(some) for some in (roles, ledger.spec.roles))
        kept = set(roles) & set(ledger.spec.roles) if keeps else set(roles) & {"E"} & set(ledger.spec.roles)
        closing = "".join(role for role in ledger.spec.roles if role not in kept)
        self.changing = (ledger.name, roles, keeps)
        self.scheduler.roles.offload(ledger.name, closing, keeps_kv=keeps)
        self.start()

    @precondition(lambda self: self.changing)
    @rule()
    def evict(self) -> None:
        self.scheduler.roles.evict(self.changing[0])
        self.start()

    @precondition(lambda self: self.changing)
    @rule()
    def call_off(self) -> None:
        self.scheduler.roles.resume(self.changing[0])
        self.changing = ()
        self.start()

    @precondition(lambda self: self.changing)
    @rule()
    def onload(self) -> None:
        """As soon as nothing is left of the roles given up."""
        self.start()
        name, roles, keeps = self.changing
        if not self.scheduler.roles.is_evacuated(name):
            return
        before = self.scheduler.instances[name].spec
        if not keeps:
            self.forget(name, mm=True)
        elif not ("P" in roles and "P" in before.roles):
            self.landed = {key for key in self.landed if key[0] != name}
        if roles:
            self.scheduler.roles.onload(make_instance(name, roles))
        else:
            self.scheduler.roles.leave(name)
        self.changing = ()
        self.start()

    @rule(roles=st.sampled_from(["E", "P", "D", "EPD"]))
    def enter(self, roles: str) -> None:
        if len(self.scheduler.instances) < 7:
            self.serial += 1
            self.scheduler.roles.enter(make_instance(f"new{self.serial}", roles))
            self.start()

    @rule(pick=st.integers(0, 100))
    def take_out(self, pick: int) -> None:
        """An instance dies; what was started on it, to it or from it never ends."""
        names = sorted(self.scheduler.instances)
        name = names[pick % len(names)]
        others = "".join(other.spec.roles for other in self.scheduler.instances.values() if other.name != name)
        if set(others) != set("EPD") or self.changing:
            return
        self.scheduler.roles.take_out(name, self.now)
        self.forget(name, mm=True)
        for lane in self.lanes.values():
            for work in [work for work in lane if not self.scheduler.is_running(work)]:
                lane.remove(work)
        self.start()

    def forget(self, name: str, *, mm: bool) -> None:
        for block in [key for key in self.memory.blocks if key[0] == name]:
            del self.memory.blocks[block]
        self.landed = {key for key in self.landed if key[0] != name or not mm}

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            audit(self.scheduler)
            assert set(self.scheduler.requests) == self.live

    def teardown(self) -> None:
        """With no more arrivals everything ends, in a number of steps bounded by the work there is."""
        if not hasattr(self, "scheduler"):
            return
        budget = 400 + 400 * len(self.live)
        if self.changing:
            self.scheduler.roles.evict(self.changing[0])
            self.start()
        while self.live or self.outstanding() or self.changing:
            if self.changing:
                self.onload()
            assert self.outstanding() or not (self.live or self.changing), f"stuck: {self.scheduler.counts()}"
            if self.outstanding():
                self.finish_one(self.pop(0), stop=False)
            self.start()
            budget -= 1
            assert budget > 0, f"does not end: {self.scheduler.counts()}"
        assert self.scheduler.idle
        audit(self.scheduler)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(LAYOUTS), st.sampled_from(ORDERS))
def test_busy_walks(random: Random, layout: str, order: str) -> None:
    """The same rules in the proportions of a busy server: pools are full most of the time, whatever else happens."""
    machine = Machine()
    machine.begin(layout, order)

    def pick() -> int:
        return random.randrange(100)

    def arrive() -> None:
        contents = [random.randrange(6) for _ in range(random.choice([0, 0, 1, 2, 4]))]
        prompt, answer = random.randint(1, 150), random.randint(1, 120)
        machine.arrive(prompt, answer, random.randint(-1, 1), contents, random.randrange(3), random.random() < 0.6)

    rules: list[tuple[int, Callable[[], object], Callable[[], object]]] = [
        (50, arrive, lambda: True),
        (100, lambda: machine.finish(pick(), random.random() < 0.05), machine.outstanding),
        (4, lambda: machine.abort(pick()), lambda: machine.live),
        (6, lambda: machine.preempt(pick()), lambda: machine.live),
        (4, lambda: machine.fail(pick()), machine.outstanding),
        (3, lambda: machine.hang(pick()), machine.under_way),
        (1, lambda: machine.lose_instance_pools(pick()), lambda: machine.live),
        (
            12,
            lambda: machine.offload(pick(), random.choice(ROLES), random.random() < 0.6),
            lambda: not machine.changing,
        ),
        (16, machine.onload, lambda: machine.changing),
        (3, machine.evict, lambda: machine.changing),
        (1, machine.call_off, lambda: machine.changing),
        (2, lambda: machine.take_out(pick()), lambda: True),
        (1, lambda: machine.enter(random.choice("EPD")), lambda: True),
    ]
    for _ in range(150):
        possible = [(weight, rule) for weight, rule, when in rules if when()]
        (rule,) = random.choices([rule for _, rule in possible], [weight for weight, _ in possible])
        rule()
        machine.books_balance()
    machine.teardown()


Machine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
