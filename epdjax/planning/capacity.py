"""What instances of a deployment would hold on a chip: the compiler's word for the steps, shapes for the rest."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from epdjax.mesh.places import Place, places_of
from epdjax.mesh.spec import MeshSpec
from epdjax.mesh.targets import target_devices, target_memory
from epdjax.models.registry import Family
from epdjax.planning.space import Choice
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import scheduling_for
from epdjax.serving.footprint import shaped_instance
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.memory import block_bytes, fit, largest_steps, mm_pool_bytes, slot_bytes

STAGE = {"E": "encode", "P": "prefill", "D": "decode"}


class DoesNotFit(ValueError):
    """A choice that the memory of the chip does not hold; the message says what is short."""


@dataclasses.dataclass(frozen=True, eq=False)
class Capacity:
    """Sizes of instances of a model on a chip.

    Attributes:
        family, model: of the model. dtype: of weights and pools.
        base: settings that all choices share (`max_model_len`, `memory_share` and the like).
        chip: see `target_devices`; its memory is what counts.
    """

    family: Family
    model: Any
    base: EngineConfig
    chip: str
    dtype: str = "bfloat16"

    def config(self, choice: Choice) -> EngineConfig:
        """The engine's settings under a choice."""
        return dataclasses.replace(self.base, mesh=choice.mesh, **choice.settings)

    def scheduling(self, choice: Choice) -> SchedulerConfig:
        """Limits and shapes under a choice."""
        return scheduling_for(self.config(choice), self.model)

    def sizes(self, choice: Choice) -> Callable[[Place], InstanceSpec]:
        """What an instance on each place of a choice would hold.

        Raises:
            DoesNotFit: some instance does not hold its weights, its steps or one sequence of full length.
        """
        places = places_of(MeshSpec.parse(choice.mesh), irp=choice.irp)
        kinds = sorted({(place.roles, place.tensor) for place in places})
        alike = dataclasses.replace(choice, mesh="1EPD")  # what an instance holds does not depend on the others
        for roles, tensor in kinds:  # before anything is compiled
            if over := self._too_large(alike, roles, tensor):
                raise DoesNotFit(over)
        held = {kind: self._spec(alike, *kind) for kind in kinds}

        def spec(place: Place) -> InstanceSpec:
            width = len(place.devices) if place.roles == "E" else 1
            made = held.get((place.roles, place.tensor)) or self._spec(alike, place.roles, place.tensor)
            return dataclasses.replace(made, name=place.name, encode_width=width if "E" in place.roles else 0)

        return spec

    @functools.cache  # noqa: B019  (a capacity lives as long as a plan is made)
    def _too_large(self, choice: Choice, roles: str, tensor: int) -> str:
        """By how much weights alone are too large; empty where they are not."""
        config = self.config(choice)
        over = _weights(self._instance(config, roles, tensor)) - self._budget(config)
        what = f"weights of {roles} over {tensor} devices of {self.chip}"
        return f"{what} are {over / 2**30:.1f} GiB too large" if over > 0 else ""

    def _budget(self, config: EngineConfig) -> float:
        return target_memory(self.chip) * config.memory_share

    @functools.cache  # noqa: B019
    def _spec(self, choice: Choice, roles: str, tensor: int) -> InstanceSpec:
        config = self.config(choice)
        instance = self._instance(config, roles, tensor)
        budget, weights = self._budget(config), _weights(instance)
        steps = max(self._step(config, role, tensor) for role in roles)
        beside = steps + mm_pool_bytes(instance) + slot_bytes(instance)
        if not set(roles) & set("PD"):
            if weights + beside > budget:
                raise DoesNotFit(f"{roles} is {(weights + beside - budget) / 2**30:.1f} GiB short on {self.chip}")
            return instance.spec
        pages = -(-instance.longest // instance.block_size)
        most = pages * instance.buckets.decode_rows[-1]
        try:
            blocks = fit(budget - weights, beside, block_bytes(instance), least=pages, most=most)
        except ValueError as error:
            raise DoesNotFit(f"{roles} over {tensor} devices of {self.chip}: {error}") from error
        return dataclasses.replace(instance.spec, kv_blocks=blocks)

    def _instance(self, config: EngineConfig, roles: str, tensor: int) -> Instance:
        devices = target_devices(self.chip, tensor)
        return shaped_instance(self.family, self.model, roles, devices, config, self.dtype)

    def _step(self, config: EngineConfig, role: str, tensor: int) -> int:
        """Bytes of the largest step of a stage. What that stage does not depend on is left at its default, so that
        each program is compiled once for all choices."""
        own = {"E": ("max_units",), "P": ("max_chunk", "max_seqs"), "D": ("max_seqs",)}[role]
        return self._compiled(role, tensor, tuple((name, getattr(config, name)) for name in own))

    @functools.cache  # noqa: B019
    def _compiled(self, role: str, tensor: int, settings: tuple[tuple[str, int], ...]) -> int:
        changes: dict[str, Any] = dict(settings)
        config = dataclasses.replace(self.base, **changes)
        instance = self._instance(config, role, 1 if role == "E" else tensor)
        return largest_steps(instance)[STAGE[role]]


def _weights(instance: Instance) -> int:
    return sum(_bytes(leaf) for _, leaves in instance.parts.values() for leaf in leaves)


def _bytes(leaf: Any) -> int:
    count = 1
    for size in leaf.sharding.shard_shape(leaf.shape):
        count *= size
    return count * int(leaf.dtype.itemsize)
