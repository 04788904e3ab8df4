"""The scheduler under a virtual clock, against what can be worked out by hand."""

import dataclasses
import math

import pytest

from epdjax.models.presets import preset
from epdjax.planning.machine import Cores, Host, Machine
from epdjax.planning.metrics import SLO
from epdjax.planning.simulator import Simulation, Sizes
from epdjax.planning.workloads import request_specs, workload
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.buckets import default_buckets
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Decode, Encode, MoveMM, Prefill, Work

SIZES = Sizes(kv_blocks=2048, mm_blocks=512, slots=16)
BUCKETS = default_buckets(max_model_len=4096, block_size=16, max_chunk=1024, max_seqs=16, max_units=4)
CONFIG = SchedulerConfig(BUCKETS, mm_block_size=64, max_model_len=4096)
MODEL = preset("MiniCPM-V-2.6")[1]


def seconds(work: Work, instance: InstanceSpec) -> float:
    """A unit takes 0.1 s, a prompt token a millisecond, a decode step 0.02 s, a move 0.05."""
    match work:
        case Encode():
            return 0.1 * math.ceil(len(work.units) / instance.encode_width)
        case Prefill():
            return 0.001 * sum(chunk.length for chunk in work.chunks)
        case Decode():
            return 0.02
    return 0.05


def simulate(mesh: str, arrivals, **options) -> Simulation:
    simulation = Simulation(mesh, CONFIG, SIZES.spec, seconds, **options)
    simulation.run(arrivals)
    return simulation


def test_a_request_alone() -> None:
    """Four units on two encoders, two steps of one unit each; moved; prefilled; moved; three more tokens."""
    simulation = simulate("2E1P1D", [(1.0, RequestSpec("r", 300, 4, (64,) * 4))])
    timeline = simulation.timelines["r"]
    assert timeline.arrived == 1.0
    assert timeline.ttft_s == pytest.approx(0.2 + 0.05 + 0.3)
    assert timeline.tpot_s == pytest.approx((0.05 + 3 * 0.02) / 3)
    report = simulation.report()
    assert report.usage["i1"].busy == pytest.approx(0.3 / report.seconds)
    assert report.usage["i2"].idle == pytest.approx(1 - 3 * 0.02 / report.seconds)
    assert report.moves["mm"].hidden == 0 and report.moves["mm"].exposed_s == pytest.approx(0.05)
    assert report.moves["kv"].exposed_s == pytest.approx(0.05)


def test_a_monolith_takes_turns() -> None:
    simulation = simulate("1EPD", [(0.0, RequestSpec(f"r{i}", 100, 1)) for i in range(5)])
    assert [t.ttft_s for t in simulation.timelines.values()] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=0.31)
    assert simulation.report().seconds == pytest.approx(0.5)
    assert simulation.report().usage["i0"].busy == pytest.approx(1.0)


def test_kv_leaves_when_the_prompt_after_it_is_done() -> None:
    """The gather of KV reads a pool that the prefill step before it is writing."""
    found = simulate("1E1P1D", [(0.0, RequestSpec("a", 100, 2)), (0.05, RequestSpec("b", 500, 2))]).timelines
    assert found["a"].ttft_s == pytest.approx(0.1)
    assert found["a"].token_times[1] == pytest.approx(0.6 + 0.05 + 0.02, abs=0.01)


def test_devices_that_share_cores() -> None:
    """Two encoders on two cores, each of which wants both; then a step before which nothing ran, and the loop."""
    spec = RequestSpec("r", 100, 1, (64,))
    arrivals = [(0.0, spec), (0.0, dataclasses.replace(spec, request_id="s"))]
    cores = Cores(2.0, lambda work, _: 2.0 if isinstance(work, Encode) else 0.0)
    options = {"irp": False, "machine": Machine(cores=cores)}
    alone, both = (simulate("2E1P1D", some, **options).timelines for some in (arrivals[:1], arrivals))
    assert alone["r"].ttft_s == pytest.approx(0.1 + 0.05 + 0.1)
    assert max(t.ttft_s for t in both.values()) == pytest.approx(0.2 + 0.05 + 0.2, abs=0.11)
    assert min(t.ttft_s for t in both.values()) >= 0.2 + 0.05 + 0.1 - 1e-9
    options["machine"] = Machine(cores=dataclasses.replace(cores, waking_s=0.01))
    slow = simulate("2E1P1D", arrivals[:1], **options).timelines["r"]
    assert slow.ttft_s == pytest.approx(alone["r"].ttft_s + 0.01)


def test_the_loop_does_one_thing_at_a_time() -> None:
    """It starts work, and hears of its end: here of the first's only when it has started the second."""
    loop = {Encode: (0.001, 0.002), MoveMM: (0.004, 0.008), Prefill: (0.016, 0.032)}
    options = {"irp": False, "machine": Machine(loop_s=lambda work: loop.get(type(work), (0.0, 0.0)))}
    one = simulate("1E1P1D", [(0.0, RequestSpec("r", 100, 1, (64,)))], **options).timelines["r"]
    assert one.ttft_s == pytest.approx(0.1 + 0.05 + 0.1 + 0.063)
    options["machine"] = Machine(loop_s=lambda work: (0.5, 0.0))
    both = simulate("2EPD", [(0.0, RequestSpec(name, 100, 1)) for name in "rs"], **options).timelines
    assert sorted(timeline.ttft_s for timeline in both.values()) == pytest.approx([0.5 + 0.5, 0.5 + 0.5 + 0.1])


def test_what_clients_and_fresh_steps_take() -> None:
    """Tokens are handed over one by one, each before the step after it is started; only the first step is fresh."""
    options = {"machine": Machine(loop_s=lambda work: (0.0, 0.0), token_s=0.001, fresh_s=0.5)}
    (plain, slow) = (simulate("1EPD", [(0.0, RequestSpec("r", 100, 4))], **some) for some in ({}, options))
    before, after = (run.timelines["r"] for run in (plain, slow))
    assert after.ttft_s == pytest.approx(before.ttft_s + 0.001) and len(after.token_times) == 4
    assert after.token_times[1] - before.token_times[1] == pytest.approx(0.5, abs=0.01)
    assert after.token_times[3] - before.token_times[3] == pytest.approx(0.5, abs=0.01)
    assert after.finished == after.token_times[-1] and after.reason == "length"


def test_media_are_prepared_by_a_few_workers() -> None:
    picture = RequestSpec("a", 100, 1, (64,))
    arrivals = [(0.0, picture), (0.0, RequestSpec("b", 100, 1, (64,))), (0.0, RequestSpec("c", 10, 1))]
    host = Host(lambda spec: 1.0 if spec.units else 0.0, workers=1)
    found = simulate("1E1P1D", arrivals, machine=Machine(host)).timelines
    assert found["a"].ttft_s == pytest.approx(1.0 + 0.1 + 0.05 + 0.1)
    assert found["b"].ttft_s == pytest.approx(2.0 + 0.1 + 0.05 + 0.1)
    assert found["c"].ttft_s == pytest.approx(0.01)


def test_what_the_scheduler_refuses_ends_at_once() -> None:
    found = simulate("1EPD", [(0.5, RequestSpec("long", 5000, 1)), (0.5, RequestSpec("short", 10, 1))])
    assert not found.timelines["long"].answered and found.timelines["long"].finished == 0.5
    report = found.report(SLO(1.0, 1.0))
    assert (report.requests, report.answered, report.attainment) == (2, 1, 0.5)


def test_the_same_for_the_same_seed() -> None:
    def run(seed: int):
        asks = workload("chat").asks(3.0, 60, seed)
        return simulate("1E1P1D", request_specs(asks, MODEL)).report(SLO(1.0, 0.05))

    assert run(1) == run(1) != run(2)


def test_more_load_is_never_better() -> None:
    attained = []
    for rate in (0.5, 2.0, 8.0, 32.0):
        asks = workload("pictures-1").asks(rate, 100)
        attained.append(simulate("5E2P1D", request_specs(asks, MODEL)).report(SLO(1.5, 0.05)).attainment)
    assert attained == sorted(attained, reverse=True) and attained[0] > 0.95 and attained[-1] < 0.5
