"""Trial runs: a workload on a deployment under the virtual clock, each run once."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from epdjax.mesh.places import Place
from epdjax.models.model_config import ModelConfig
from epdjax.planning.costs.host import HostCosts
from epdjax.planning.machine import IDEAL, Machine
from epdjax.planning.metrics import SLO, Report, Timeline
from epdjax.planning.simulator import Seconds, Simulation
from epdjax.planning.space import Choice
from epdjax.planning.workloads import Ask, Workload, request_specs
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec

LATE = 4  # times the TTFT of the SLO until a queue that grows by a quarter of what comes has made requests late
MOST_REQUESTS = 2000  # what more of them would do is told from these


@dataclasses.dataclass(frozen=True, eq=False)
class TrialRuns:
    """Runs of one workload.

    Attributes:
        model: config of the model that is served.
        workload: what is asked; a sequence is a trace, whose gaps are stretched to the rate.
        slo: what requests are to meet.
        seconds: what work takes, under a choice.
        machine: what deployments run on, but for the preparing of requests: `host`; None: that takes no time.
        scheduling: limits and shapes, under a choice. sizes: of instances, likewise.
        count: requests of a run, at least; at high rates as many more as it takes for a queue to build up.
        seed: of the workload.
    """

    model: ModelConfig
    workload: Workload | Sequence[Ask]
    slo: SLO
    seconds: Callable[[Choice], Seconds]
    scheduling: Callable[[Choice], SchedulerConfig]
    sizes: Callable[[Choice], Callable[[Place], InstanceSpec]]
    machine: Machine = IDEAL
    host: HostCosts | None = None
    count: int = 200
    seed: int = 0

    @functools.cached_property
    def lasting_s(self) -> float:
        """How long requests keep coming. Fewer would be over before anybody waits: until as many answers are decoded at
        a time as come while one lasts, at the slowest it may, and a queue has built up then."""
        asks = self.workload.asks(1.0, self.count, self.seed) if isinstance(self.workload, Workload) else self.workload
        return LATE * self.slo.ttft_s + self.slo.tpot_s * statistics.fmean(ask.output_tokens for ask in asks)

    @functools.cache  # noqa: B019  (runs live as long as a plan is made)
    def __call__(self, choice: Choice, rate: float) -> Report:
        """A choice at a rate, requests per second."""
        simulation, arrivals = self._ready(choice, rate)
        simulation.run(arrivals)
        return simulation.report(self.slo)

    @functools.cache  # noqa: B019
    def holds(self, choice: Choice, rate: float, attainment: float) -> bool:
        """Whether such a share of the requests meets the SLO; a run ends as soon as that is known."""
        simulation, arrivals = self._ready(choice, rate)
        may_miss, met, missed = math.floor((1 - attainment) * len(arrivals) + 1e-9), 0, 0

        def enough(timeline: Timeline) -> bool:
            nonlocal met, missed
            meets = timeline.meets(self.slo)
            met, missed = met + meets, missed + (not meets)
            return missed > may_miss or met >= len(arrivals) - may_miss

        timelines = simulation.run(arrivals, enough)
        return missed <= may_miss and not (len(arrivals) >= MOST_REQUESTS and self._falls_behind(timelines))

    def _falls_behind(self, timelines: Mapping[str, Timeline]) -> bool:
        """Whether first tokens of a run that was cut short would come too late at the end of a full one, if their times
        went on to grow as they did in its second half: a queue that grows does so evenly."""
        begun = [timeline for timeline in timelines.values() if timeline.token_times]
        half = begun[len(begun) // 2 :]
        if half[0].arrived == half[-1].arrived:
            return False  # all came at once
        line = statistics.linear_regression([t.arrived for t in half], [t.ttft_s for t in half])
        return line.intercept + line.slope * self.lasting_s > self.slo.ttft_s

    def _ready(self, choice: Choice, rate: float) -> tuple[Simulation, list[tuple[float, RequestSpec]]]:
        config, asks = self.scheduling(choice), self._asks(rate)
        arrivals = request_specs(asks, self.model, config.buckets.unit_sizes, self.slo.ttft_s)
        machine = self.machine
        if self.host is not None:
            pixels = {
                spec.request_id: [pixels for media in ask.media for pixels in media.pixels]
                for ask, (_, spec) in zip(asks, arrivals)
            }
            machine = dataclasses.replace(machine, host=self.host.host(pixels))
        sizes, seconds = self.sizes(choice), self.seconds(choice)
        return Simulation(choice.mesh, config, sizes, seconds, irp=choice.irp, machine=machine), arrivals

    def _asks(self, rate: float) -> list[Ask]:
        count = max(self.count, min(math.ceil(rate * self.lasting_s), MOST_REQUESTS))
        if isinstance(self.workload, Workload):
            return self.workload.asks(rate, count, self.seed)
        asks = list(self.workload[:count])
        span = asks[-1].at_s - asks[0].at_s
        stretch = len(asks) / rate / span if span else 0.0
        return [dataclasses.replace(ask, at_s=(ask.at_s - asks[0].at_s) * stretch) for ask in asks]
