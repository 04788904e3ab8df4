"""Workloads to plan for: what requests are like and when they come, as sizes; those of the paper and some others."""

import dataclasses
import itertools
import random
from collections.abc import Hashable, Sequence

from epdjax.models.model_config import ModelConfig
from epdjax.nearest import nearest
from epdjax.planning.arrivals import Arrivals
from epdjax.planning.distributions import Distribution
from epdjax.planning.media_sizes import Media, unit_shapes
from epdjax.serving.request import RequestSpec

PICTURE_4K = Media("image", 4032, 3024)
FRAME = Media("video", 448, 336)


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request of a workload.

    Attributes:
        at_s: when it comes, seconds after the start.
        text_tokens, output_tokens: of its prompt and its answer.
        media: of its prompt, before the text.
        contents: of each media item, what tells it from others; equal ones are encoded once. Empty: all differ.
    """

    at_s: float
    text_tokens: int
    output_tokens: int
    media: tuple[Media, ...] = ()
    contents: tuple[Hashable, ...] = ()


def always(value: int) -> Distribution:
    """A number that is not random."""
    return Distribution("always", (value,))


QUESTION, SHORT_ANSWER, NONE = always(22), always(10), always(0)
POISSON = Arrivals()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Requests that are alike.

    Attributes:
        weight: how often they come, in proportion to others.
        text, output, items: tokens of prompts and answers, and media items of a prompt.
        media: what the items are; one of them at random.
        distinct: how many different items there are; None: no two are the same.
    """

    weight: float = 1.0
    text: Distribution = QUESTION
    output: Distribution = SHORT_ANSWER
    items: Distribution = NONE
    media: tuple[Media, ...] = (PICTURE_4K,)
    distinct: int | None = None

    def ask(self, at_s: float, rng: random.Random) -> Ask:
        """A request of this kind."""
        count = self.items.sample(rng)
        media = tuple(rng.choice(self.media) for _ in range(count))
        contents = tuple(rng.randrange(self.distinct) for _ in media) if self.distinct else ()
        return Ask(at_s, max(1, self.text.sample(rng)), max(1, self.output.sample(rng)), media, contents)


@dataclasses.dataclass(frozen=True)
class Workload:
    """Requests of some kinds.

    Attributes:
        kinds: drawn by weight, or with `in_order` one after the other, each as often as its weight says.
    """

    kinds: tuple[Kind, ...]
    arrivals: Arrivals = POISSON
    in_order: bool = False

    def asks(self, rate: float, count: int, seed: int = 0) -> list[Ask]:
        """The first `count` requests at `rate` per second on average; the same for the same seed."""
        rng = random.Random(seed)
        times = itertools.islice(self.arrivals.times(rate, random.Random(rng.random())), count)
        if self.in_order:
            order = itertools.chain(*(itertools.repeat(kind, round(kind.weight)) for kind in self.kinds))
            kinds = itertools.chain(order, itertools.repeat(self.kinds[-1]))
            return [kind.ask(at, rng) for at, kind in zip(times, kinds)]
        weights = [kind.weight for kind in self.kinds]
        return [rng.choices(self.kinds, weights)[0].ask(at, rng) for at in times]


def request_specs(
    asks: Sequence[Ask], model: ModelConfig, unit_sizes: Sequence[int] = (), slo_s: float = 10.0
) -> list[tuple[float, RequestSpec]]:
    """What the scheduler is told of requests, with their arrivals.

    Args:
        unit_sizes: of the deployment's buckets; empty: all units count as the first size.
        slo_s: when first tokens are due.

    Raises:
        ValueError: see `unit_shapes`.
    """
    return [(ask.at_s, _spec(f"r{n}", ask, model, unit_sizes, slo_s)) for n, ask in enumerate(asks)]


def _spec(name: str, ask: Ask, model: ModelConfig, sizes: Sequence[int], slo_s: float) -> RequestSpec:
    tokens: list[int] = []
    buckets: list[int] = []
    keys: list[Hashable] = []
    for item, media in enumerate(ask.media):
        for unit, shape in enumerate(unit_shapes(model, media)):
            tokens.append(shape.tokens)
            buckets.append(next((i for i, size in enumerate(sizes) if size >= shape.size), 0))
            keys.append((media, ask.contents[item], unit) if ask.contents else (name, item, unit))
    starts = tuple(itertools.accumulate(tokens[:-1], initial=0)) if tokens else ()
    return RequestSpec(
        name,
        ask.text_tokens + sum(tokens),
        ask.output_tokens,
        tuple(tokens),
        unit_buckets=tuple(buckets),
        unit_keys=tuple(keys),
        unit_starts=starts,
        slo_s=slo_s,
    )


def _pictures(count: int, output: int = 10) -> Workload:
    return Workload((Kind(items=always(count), output=always(output)),))


def _frames(count: int) -> Workload:
    return Workload((Kind(items=always(1), media=(dataclasses.replace(FRAME, frames=count),)),))


WORKLOADS: dict[str, Workload] = {
    **{f"pictures-{count}": _pictures(count) for count in (1, 2, 4, 6, 8)},
    **{f"video-mme-{frames}": _frames(frames) for frames in (8, 16, 32, 64)},
    "nextqa": _frames(8),
    "audio-24": Workload(
        (Kind(items=always(24), media=(Media("audio", seconds=10.0),)),),
    ),
    "role-switching": Workload(
        (
            Kind(10, items=always(1), output=always(50)),
            Kind(90, items=always(1), output=always(500)),
        ),
        in_order=True,
    ),
    "offline": dataclasses.replace(_pictures(1), arrivals=Arrivals("at-once")),
    "chat": Workload(
        (
            Kind(
                0.9,
                text=Distribution("lognormal", (300, 1.0), 4),
                output=Distribution("lognormal", (200, 0.8), 1),
            ),
            Kind(
                0.1,
                text=Distribution("lognormal", (60, 0.8), 4),
                output=Distribution("lognormal", (150, 0.8), 1),
                items=always(1),
                media=(Media("image", 1280, 960), Media("image", 787, 444)),
            ),
        )
    ),
}
"""By name: pictures of 4032 x 3024 with short questions and answers, videos, clips and the offline run as in the paper,
and chat with few pictures."""


def workload(name: str) -> Workload:
    """A workload by name.

    Raises:
        ValueError: no such workload; the nearest are named.
    """
    found = WORKLOADS.get(name)
    if found is None:
        raise ValueError(f"no workload {name!r}; {nearest(name, WORKLOADS)}")
    return found
