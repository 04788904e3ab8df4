"""What instances of a deployment would hold on a chip, for every choice of a space; see `memory`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from epdjax.mesh.places import Place, places_of
from epdjax.mesh.spec import Group, MeshSpec
from epdjax.models.registry import Family
from epdjax.planning.memory import Chip, PlannedModel, StepSizes, instance_memory, instance_spec
from epdjax.planning.space import Choice
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import scheduling_for
from epdjax.serving.ledger import InstanceSpec


class DoesNotFit(ValueError):
    """A choice that the memory of the chip does not hold; the message says what is short."""


@dataclasses.dataclass(frozen=True, eq=False)
class Capacity:
    """Sizes of instances of a model on a chip.

    Attributes:
        family, model: of the model. dtype: of weights and pools.
        base: settings that all choices share (`max_model_len`, `memory_share` and the like).
        chip: see `memory.Chip`.
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
        over = self._steps(tensor).weights(roles) - self._budget(self.config(choice))
        what = f"weights of {roles} over {tensor} devices of {self.chip}"
        return f"{what} are {over / 2**30:.1f} GiB too large" if over > 0 else ""

    @functools.cache  # noqa: B019
    def _spec(self, choice: Choice, roles: str, tensor: int) -> InstanceSpec:
        config, steps = self.config(choice), self._steps(tensor)
        try:
            memory = instance_memory(steps, Group(1, roles, tensor), config, self._budget(config))
        except ValueError as error:
            raise DoesNotFit(f"{roles} over {tensor} devices of {self.chip}: {error}") from error
        made = instance_spec(steps, roles, config, self.scheduling(choice))
        return dataclasses.replace(made, kv_blocks=memory.kv_blocks)

    @functools.cache  # noqa: B019
    def _steps(self, tensor: int) -> StepSizes:
        """Steps over so many devices; each shape is compiled once for all choices."""
        model = PlannedModel("planned", self.family, self.model, jnp.dtype(self.dtype))
        return StepSizes(model, self._device.devices(tensor), self.base.block_size, self.base.attention)

    @functools.cached_property
    def _device(self) -> Chip:
        return Chip.of(self.chip, MeshSpec.parse("1EPD"))

    def _budget(self, config: EngineConfig) -> int:
        return int(self._device.memory * config.memory_share)
