"""Where instances are made: at start-up, and when roles change."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from epdjax.mesh.devices import InstanceMesh
from epdjax.models.checkpoint import load_part
from epdjax.models.registry import Family, abstract_part
from epdjax.serving.admission import SchedulerConfig
from epdjax.serving.config import EngineConfig
from epdjax.serving.instance import Instance
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.memory import choose_kv_blocks
from epdjax.serving.steps import Split

PARTS_OF_ROLE = {"E": "encoder", "P": "language_model", "D": "language_model"}
Parts = dict[str, tuple[Split, tuple[Any, ...]]]


def parts_of(roles: str) -> list[str]:
    """The parts of the model that roles need."""
    return sorted({PARTS_OF_ROLE[role] for role in roles})


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Everything an instance of one deployment is made from.

    Attributes:
        config: of the engine. family, model: the model's family and config.
        scheduling: limits and shapes, as the scheduler takes them.
        dtype: of weights and pools.
    """

    config: EngineConfig
    family: Family
    model: Any
    scheduling: SchedulerConfig
    dtype: jnp.dtype

    def instance(self, place: InstanceMesh, kv_blocks: int, parts: Parts | None = None) -> Instance:
        """An instance on some devices; without `parts` its parameters are shapes: its steps can be compiled, also for
        devices that are not there."""
        return Instance(
            place,
            self.spec(place, kv_blocks),
            self.model,
            self.shapes(place) if parts is None else parts,
            self.scheduling.buckets,
            dtype=self.dtype,
            block_size=self.scheduling.block_size,
            mm_block_size=self.scheduling.mm_block_size,
            attention=self.config.attention,
        )

    def spec(self, place: InstanceMesh, kv_blocks: int) -> InstanceSpec:
        """What the scheduler knows of it: its roles and how much it holds."""
        config, scheduling = self.config, self.scheduling
        holds_kv, prefills, encodes = set(place.roles) & {"P", "D"}, "P" in place.roles, "E" in place.roles
        tokens = scheduling.max_model_len // scheduling.mm_block_size  # MM blocks that a full context could be made of
        return InstanceSpec(
            place.name,
            place.roles,
            kv_blocks=kv_blocks if holds_kv else 0,
            mm_blocks=(config.mm_blocks or max(tokens, 16 * config.max_seqs)) if prefills else 0,
            slots=scheduling.buckets.decode_rows[-1] if holds_kv else 0,
            encode_width=place.submesh.width if encodes else 0,
            tensor=place.submesh.mesh.shape["tensor"],
        )

    def shapes(self, place: InstanceMesh) -> Parts:
        """The parameters that a place needs, as shapes with their shardings."""
        parts = {}
        for part in parts_of(place.roles):
            module = abstract_part(self.family, self.model, part, self.dtype)
            for _, variable in nnx.to_flat_state(nnx.state(module)):
                sharding = place.submesh.sharding(variable.get_metadata("logical_axes"), variable.shape)
                variable.set_value(jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding))
            parts[part] = Split.of(module)
        return parts

    def load(self, places: Sequence[InstanceMesh]) -> dict[str, Parts]:
        """Parameters of instances from the checkpoint, by name: only the parts their roles need, each tensor read once
        for all of them.

        Raises:
            CheckpointError: see `load_part`.
        """
        loaded: dict[str, Parts] = {place.name: {} for place in places}
        for part in self.family.parts:
            owners = [place for place in places if part in parts_of(place.roles)]
            if not owners:
                continue
            placements = [place.submesh.sharding for place in owners]
            states = load_part(Path(self.config.model), self.family, self.model, part, placements, self.dtype)
            split, _ = Split.of(abstract_part(self.family, self.model, part, self.dtype))
            for place, state in zip(owners, states, strict=True):
                loaded[place.name][part] = (split, tuple(jax.tree.leaves(state)))
        return loaded

    def kv_blocks(self, place: InstanceMesh, in_use: int | None = None) -> int:
        """KV blocks for an instance on a place; see `choose_kv_blocks`.

        Raises:
            ValueError: its devices do not hold enough.
        """
        return choose_kv_blocks(self.config, self.scheduling, functools.partial(self.instance, place), in_use)
