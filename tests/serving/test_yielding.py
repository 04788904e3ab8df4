"""With the order fair, whoever holds many places makes room for a client who holds few; alone, nobody does."""

import dataclasses
import random

import pytest

from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.request import RequestSpec
from epdjax.serving.scheduler import Scheduler
from epdjax.serving.work import Decode, Prefill
from tests.serving.scheduling import BUCKETS, make_instance, make_scheduler, picture, simulate

LAYOUTS = ("PD", "P D", "E P D", "EPD", "P P D D", "E PD D")


def roomy(layout: str, order: str) -> Scheduler:
    """KV for more sequences than there are slots."""
    instances = [
        dataclasses.replace(make_instance(f"{roles}{i}", roles), kv_blocks=60) for i, roles in enumerate(layout.split())
    ]
    return Scheduler(SchedulerConfig(BUCKETS, max_model_len=256, order=order), instances)


def long_answer(name: str, client: str) -> RequestSpec:
    return RequestSpec(name, 20, 150, client=client)


def first_token_s(log: list) -> dict[str, float]:
    """When each request had its first token."""
    times: dict[str, float] = {}
    for at, work in log:
        if isinstance(work, Prefill):
            for chunk in work.chunks:
                if chunk.is_last:
                    times.setdefault(chunk.request_id, at)
    return times


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_client_does_not_wait_for_the_end_of_anothers_long_answers(layout: str) -> None:
    """Twenty answers of 150 tokens, a second and a half each, hold every slot when another client comes."""
    asked = 1.0
    few = RequestSpec("few", 20, 8, client="few")
    waits = {}
    for order in ("fcfs", "fair"):
        scheduler = roomy(layout, order)
        log: list = []
        many = [(0.0, long_answer(f"m{i}", "many")) for i in range(20)]
        ends = simulate(scheduler, [*many, (asked, few)], log)
        assert {reason for _, reason in ends.values()} == {"length"} and len(ends) == 21
        waits[order] = (first_token_s(log)["few"] - asked, ends["few"][0] - asked)
    assert waits["fcfs"][1] > 1.5
    # Steps that were begun, its own prompt and eight tokens, some of them beside a prompt that is run again.
    assert waits["fair"][0] < 0.3 and waits["fair"][1] < 0.8, waits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_is_asked_for_the_sake_of_the_same_client(layout: str) -> None:
    logs = []
    for order in ("fcfs", "fair"):
        scheduler = roomy(layout, order)
        log: list = []
        simulate(scheduler, [(0.1 * i, long_answer(f"m{i}", "one")) for i in range(20)], log)
        logs.append(log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_even_out_and_go_no_further(layout: str) -> None:
    """Two clients with many long answers share the slots; once they do, nobody is preempted any more."""
    scheduler = roomy(layout, "fair")
    log: list = []
    arrivals = [(0.0, long_answer(f"a{i}", "a")) for i in range(8)] + [
        (0.5, long_answer(f"b{i}", "b")) for i in range(8)
    ]
    ends = simulate(scheduler, arrivals, log)
    assert len(ends) == 16 and {reason for _, reason in ends.values()} == {"length"}
    slots = sum(spec.spec.slots for spec in scheduler.instances.values())
    assert scheduler.preemptions <= slots
    rows = [work.sequences for at, work in log if isinstance(work, Decode) and at > 1.0]
    both = [row for row in rows if len({sequence.request_id[0] for sequence in row}) == 2]
    assert len(both) > len(rows) / 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(8))
def test_everything_ends_whoever_comes_when(layout: str, seed: int) -> None:
    """Random crowds of several clients, among them requests that fit only alone: all end, and the books balance."""
    rng = random.Random(seed)
    scheduler: Scheduler = make_scheduler(layout, order="fair")
    arrivals = []
    for i in range(60):
        client, name = rng.choice("aaaabbc"), f"r{i}"
        tokens = rng.choice((2, 10, 60, 150))
        if "E" in layout and rng.random() < 0.3:
            spec = picture(name, *rng.sample("xyzvw", rng.randint(1, 2)), client=client)
        else:
            spec = RequestSpec(name, rng.choice((5, 40, 100)), tokens, client=client)
        arrivals.append((rng.uniform(0, 3), spec))
    ends = simulate(scheduler, sorted(arrivals, key=lambda arrival: arrival[0]))
    assert len(ends) == 60 and {reason for _, reason in ends.values()} == {"length"}
    assert all(pool.held == 0 for ledger in scheduler.instances.values() for pool in ledger.pools.values())
