"""Orders, assignments, deadlines and pace; and that nobody starves under any of them."""

import dataclasses
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.serving import policies
from epdjax.serving.policies import ORDERS, per_stage
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, Encode, Prefill
from tests.serving.scheduling import BUCKETS, make_scheduler, picture, seconds, simulate


def first_tokens(log: list) -> list[str]:
    """Requests in the order of their first token."""
    return [c.request_id for _, work in log if isinstance(work, Prefill) for c in work.chunks if c.is_last]


def order_of(policy: str, specs: list[RequestSpec], layout: str = "E P D") -> list[str]:
    """In which order requests that arrive behind a long one are prefilled."""
    scheduler = make_scheduler(layout, order=policy)
    log: list = []
    simulate(scheduler, [(0.0, RequestSpec("busy", 200, 2)), *((0.001, spec) for spec in specs)], log)
    return [name for name in first_tokens(log) if name != "busy"]


def test_orders() -> None:
    long, short, urgent = (
        RequestSpec("long", 150, 2),
        RequestSpec("short", 60, 2),
        RequestSpec("urgent", 150, 2, slo_s=1),
    )
    assert order_of("fcfs", [long, short]) == ["long", "short"]
    assert order_of("sjf", [long, short]) == ["short", "long"]
    assert order_of("deadline", [long, urgent]) == ["urgent", "long"]
    assert order_of("encode=sjf", [long, short]) == ["long", "short"], "other stages keep the default"
    first = RequestSpec("first", 150, 2, priority=-1)
    assert order_of("fcfs", [long, first]) == ["first", "long"]


def test_the_order_of_encoding() -> None:
    scheduler = make_scheduler("E P D", order="encode=sjf")
    log: list = []
    specs = [picture("busy", *"abcd"), picture("long", *"efgh"), picture("short", "i")]
    simulate(scheduler, [(0.0, specs[0]), (0.001, specs[1]), (0.001, specs[2])], log)
    owners = [unit.request_id for _, work in log if isinstance(work, Encode) for unit in work.units]
    assert owners.index("short") < owners.index("long")


@pytest.mark.parametrize("setting", ["fastest", "decode=fastest", "decod=fcfs", "fcfs,", ""])
def test_unknown_policies_are_named(setting: str) -> None:
    with pytest.raises(ValueError, match="order"):
        per_stage(setting, tuple(ORDERS), "order")


@settings(max_examples=40, deadline=None)
@given(
    policy=st.sampled_from([*ORDERS, "encode=sjf,prefill=deadline,decode=sjf"]),
    assignment=st.sampled_from(["round-robin", "least-loaded", "cache-aware"]),
    layout=st.sampled_from(["EPD", "E P D", "E PD", "E P P D"]),
    victim=st.sampled_from(
        [
            RequestSpec("victim", 200, 50, priority=1, slo_s=1.1),
            picture("victim", *"xyz", priority=1, slo_s=1.1),
            RequestSpec("victim", 20, 200, priority=1, slo_s=1.1),
        ]
    ),
    favoured=st.sampled_from(
        [RequestSpec("_", 20, 2, slo_s=0.1), RequestSpec("_", 100, 30, slo_s=0.1), picture("_", "p", slo_s=0.1)]
    ),
)
def test_nobody_starves(policy: str, assignment: str, layout: str, victim: RequestSpec, favoured: RequestSpec) -> None:
    """More requests than can be served arrive without end, each of them preferred to one that came first. It is begun
    before all that come later than its disadvantage is worth."""
    scheduler = make_scheduler(layout, order=policy, assignment=assignment, max_requests=10_000)
    gap, priority_s, token_s = 0.01, 0.5, 0.002  # worth less than in real life, so that the run is short
    disadvantage = priority_s + token_s * 250 + 1.0
    arrivals = [(i * gap, renamed(favoured, f"r{i}")) for i in range(int((disadvantage + 1) / gap))]
    with mock.patch.multiple(policies, PRIORITY_S=priority_s, SJF_TOKEN_S=token_s):
        log: list = []
        ends = simulate(scheduler, sorted([(0.1, victim), *arrivals], key=lambda a: a[0]), log)
    assert {reason for _, reason in ends.values()} == {"length"}
    begun = first_tokens(log)
    later = {spec.request_id for at, spec in arrivals if at > 0.1 + disadvantage}
    assert len(later & set(begun[: begun.index("victim")])) <= 4, "no more than were begun together with it"


def renamed(spec: RequestSpec, request_id: str) -> RequestSpec:
    keys = tuple((request_id, i) for i in range(spec.units))
    return RequestSpec(
        request_id, spec.prompt_tokens, spec.max_tokens, spec.unit_tokens, unit_keys=keys, slo_s=spec.slo_s
    )


def test_a_request_goes_where_its_content_is_unless_that_costs_more_than_it_saves() -> None:
    keys = tuple(("system prompt", i) for i in range(12))
    scheduler = make_scheduler("E P P D")
    log: list = []
    simulate(scheduler, [(0.0, RequestSpec("first", 200, 2, block_keys=keys))], log)
    home = next(work.instance for _, work in log if isinstance(work, Prefill))
    other = RequestSpec("other", 200, 2)
    arrivals = [(1.0, other), (1.001, RequestSpec("again", 200, 2, block_keys=keys))]
    log.clear()
    scheduler.instances[home].prompt_tokens += 100  # busy, but with less than what is cached there
    simulate_without_audit(scheduler, arrivals, log)
    assert {work.instance for _, work in log if isinstance(work, Prefill) and holds(work, "again")} == {home}


def holds(work: Prefill, request_id: str) -> bool:
    return any(chunk.request_id == request_id for chunk in work.chunks)


def simulate_without_audit(scheduler, arrivals, log) -> None:
    with pytest.raises(AssertionError):  # the books were cooked
        simulate(scheduler, arrivals, log)


def test_time_limits() -> None:
    scheduler = make_scheduler("E P D")
    ends = simulate(
        scheduler,
        [(0.0, RequestSpec("slow", 200, 50, timeout_s=0.3)), (0.0, RequestSpec("fine", 20, 5, timeout_s=0.3))],
    )
    assert ends["slow"] == (0.3, "error")
    assert ends["fine"][1] == "length"


def test_prefill_keeps_the_pace_of_decoding() -> None:
    """A decode step takes 10 ms, so with a pace of 2 a prefill step beside it may take 20: no more than 16 tokens."""
    gaps = {}
    for pace in (2.0, 1000.0):
        buckets = dataclasses.replace(BUCKETS, prefill=((1, 16), (1, 64)))
        scheduler = make_scheduler("EPD", buckets=buckets, decode_pace=pace)
        log: list = []
        simulate(scheduler, [(0.0, RequestSpec("talks", 10, 60)), (0.2, RequestSpec("long", 200, 2))], log)
        times = [
            at for at, work in log if isinstance(work, Decode) and "talks" in {r.request_id for r in work.sequences}
        ]
        gaps[pace] = max(b - a for a, b in pairwise(times))
    assert gaps[1000.0] == pytest.approx(0.074)
    assert gaps[2.0] == pytest.approx(0.026)


def test_encode_keeps_the_pace_of_decoding() -> None:
    """A unit takes as long as a decode step, as the first teaches: two in a step, or one where the pace says so."""
    most = {}
    for pace in (1.5, 1000.0):
        scheduler = make_scheduler("EPD", decode_pace=pace)
        log: list = []
        pictures = [(0.1 if i == 0 else 0.3, picture(f"asks{i}", f"picture {i}")) for i in range(5)]
        simulate(scheduler, [(0.0, RequestSpec("talks", 10, 200)), *pictures], log)
        most[pace] = max(len(work.units) for _, work in log if isinstance(work, Encode))
    assert most == {1.5: 1, 1000.0: 2}


def test_service_times_are_learned_without_what_was_waited() -> None:
    scheduler = make_scheduler("E P D")
    log: list = []
    simulate(scheduler, [(0.0, RequestSpec(f"r{i}", 64, 20)) for i in range(4)], log)
    times = scheduler.instances["D2"].times
    assert times.decode_s == pytest.approx(0.01, rel=0.2)
    prefill = next(work for _, work in log if isinstance(work, Prefill))
    assert scheduler.instances["P1"].times.prefill_s(64) == pytest.approx(seconds(prefill), rel=0.2)
