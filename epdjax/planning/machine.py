"""What a deployment runs on besides devices of its own: a host that prepares requests and drives the engine, and cores
that virtual devices share."""

import dataclasses
from collections.abc import Callable, Mapping

from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.request import RequestSpec
from epdjax.serving.work import Work


@dataclasses.dataclass(frozen=True)
class Host:
    """The host's part of a request before the scheduler sees it: media are decoded, resized and cut.

    Attributes:
        seconds: that a request takes. workers: how many requests are prepared at the same time.
    """

    seconds: Callable[[RequestSpec], float]
    workers: int


@dataclasses.dataclass(frozen=True)
class Cores:
    """Cores that all devices share, as virtual CPU devices do.

    Attributes:
        count: how many there are. demand: how many work keeps busy on an instance.
        waking_s: that work takes longer before which nothing ran.
        takes: how many of them work of the first kind takes from work of the second that runs beside it on another
            instance; where a pair is missing, its demand.
    """

    count: float
    demand: Callable[[Work, InstanceSpec], float]
    waking_s: float = 0.0
    takes: Mapping[tuple[type[Work], type[Work]], float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Machine:
    """See the module; by default nothing of it takes time.

    Attributes:
        host: prepares requests; None: that takes no time.
        cores: that devices share; None: each has its own.
        loop_s: that the engine's loop, one thing at a time, takes to start work, and when it has ended; None: none.
        token_s: that clients take for a token, in Python as the loop is: only one of them runs at a time.
        fresh_s: that a decode step takes longer which is not behind other work of its instance.
        in_order: whether KV leaves an instance only when it has done what it was given before, as it is with this
            engine, whose steps and gathers are in one queue of the device.
    """

    host: Host | None = None
    cores: Cores | None = None
    loop_s: Callable[[Work], tuple[float, float]] | None = None
    token_s: float = 0.0
    fresh_s: float = 0.0
    in_order: bool = True


IDEAL = Machine()
