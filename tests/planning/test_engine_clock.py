"""What a clock makes of an engine's starts and ends."""

import time
from types import SimpleNamespace

from epdjax.planning.costs.engine_clock import EngineClock
from epdjax.planning.costs.profile import NAMES
from epdjax.serving.engine import Done
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Decode, Prefill, Work


class Engine:
    """Writes down what it is told."""

    def __init__(self, held_s: float = 0.0) -> None:
        self.held_s = held_s
        self.told: list[tuple[str, int]] = []
        self.scheduler = SimpleNamespace(instances={"i0": SimpleNamespace(spec=InstanceSpec("i0", "PD"))})

    def _start(self, work: Work) -> None:
        time.sleep(self.held_s)
        self.told.append(("start", work.work_id))

    def _finish(self, done: Done) -> None:
        self.told.append(("finish", done.work.work_id))


def test_work_is_timed_from_start_to_end() -> None:
    engine = Engine()
    clock = EngineClock(engine)  # type: ignore[arg-type]
    under_way, *works = Decode(0, "i0", ()), Prefill(1, "i0", ()), Decode(2, "i0", ())
    for work in works:
        engine._start(work)
    for work in (under_way, *works):
        engine._finish(Done(work, None, None))
    loop = clock.loop()
    clock.stop()
    engine._start(under_way)
    assert engine.told == list(zip(["start"] * 2 + ["finish"] * 3 + ["start"], (1, 2, 0, 1, 2, 0)))
    assert [(waited.work, waited.fresh) for waited in clock.waited] == [(works[0], True), (works[1], False)]
    assert all(0 < waited.seconds < 10 for waited in clock.waited)
    assert set(loop) == set(NAMES.values()) and loop["encode"] == loop["prefill"] != loop["decode"]


def test_being_held_up_counts_where_nothing_else_runs() -> None:
    """A start that waits for something holds up the loop; beside work it may be the work that slows it down."""
    engine = Engine(held_s=0.1)
    clock = EngineClock(engine)  # type: ignore[arg-type]
    works = Prefill(0, "i0", ()), Decode(1, "i0", ())
    for work in works:
        engine._start(work)
    for work in works:
        engine._finish(Done(work, None, None))
    loop = clock.loop()
    assert loop["prefill"].start >= 0.1 > loop["decode"].start
    assert loop["prefill"].end < 0.05 and [waited.work for waited in clock.waited] == list(works)
    assert clock.waited[0].seconds >= 0.1, "of the second start"
