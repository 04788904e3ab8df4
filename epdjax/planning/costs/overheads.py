"""What the host adds to steps: the engine's loop around them, and threads that have to wake up."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from epdjax.planning.benchmarks.overhead import measure_scheduler
from epdjax.planning.costs.live import LiveTimes
from epdjax.planning.costs.profile import NAMES, LoopTimes, Overhead, Profile
from epdjax.planning.costs.profiled import ProfiledCosts
from epdjax.planning.costs.stepping import dispatch_s, waking_s
from epdjax.serving.instance import Instance
from epdjax.serving.work import Decode


def seen_overhead(profile: Profile, live: LiveTimes) -> Overhead:
    """Of a deployment that was seen at work.

    Args:
        profile: of its steps alone. live: of the deployment.
    """
    costs, longer = ProfiledCosts(profile), dict[str, list[float]]()
    for waited in live.waited:
        alone_s = costs(waited.work, waited.instance)
        longer.setdefault(NAMES[type(waited.work)], []).append(waited.seconds - alone_s)
    more = {name: statistics.mean(some) for name, some in longer.items()}
    more["decode"] = decode_s = _decode_s(profile, costs, live)
    fresh = [w.seconds - costs(w.work, w.instance) for w in live.waited if w.fresh and isinstance(w.work, Decode)]
    return Overhead(live.loop, more=more, token=live.token_s, fresh=max(0.0, statistics.mean(fresh) - decode_s))


def _decode_s(profile: Profile, costs: ProfiledCosts, live: LiveTimes) -> float:
    """What a decode step takes longer. It waits for the one before it; the pace of an answer is that of the steps, one
    behind the other, and of what the threads beside them take from the cores that all share."""
    steps = [waited for waited in live.waited if isinstance(waited.work, Decode)]
    cores = costs.machine.cores
    slower = (
        1.0 if cores is None else statistics.mean(cores.demand(w.work, w.instance) + 1 for w in steps) / cores.count
    )
    loop = live.loop["decode"]
    alone_s = statistics.mean(costs(waited.work, waited.instance) for waited in steps)
    return live.pace_s - (loop.start + loop.end + live.token_s) * max(0.0, slower - 1) - alone_s


def guessed_overhead(instances: Sequence[Instance], repeats: int) -> Overhead:
    """Of a deployment that has no checkpoint to serve: its loop is put together from the scheduler and a dispatch.

    Args:
        instances: one of each kind. repeats: timed calls.
    """

    def least(measure: Callable[[Instance, Any, int], float]) -> float:
        able = [(i, key) for i in instances for key in i.programs if key[0] == "prefill"]
        return max(0.0, measure(*min(able, key=lambda pair: pair[1][1]), max(repeats, 10)))

    scheduler = measure_scheduler(tuple(i.roles for i in instances), requests=60, running=16, tokens=16)
    loop = LoopTimes(least(dispatch_s), scheduler.step_s)
    return Overhead(dict.fromkeys(NAMES.values(), loop), least(waking_s))
