"""Search of a space of deployments too large to enumerate: Optuna's tree-structured Parzen estimator looks around, and
then the best found is improved step by step."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from epdjax.mesh.spec import MeshSpec
from epdjax.planning.space import Choice, Space

LOOKING_AROUND = 0.6  # share of the evaluations


def suggested(space: Space, evaluations: int, seed: int, value: Callable[[Choice], float]) -> Iterator[Choice]:
    """Choices worth a look, each after it was looked at, and once.

    Args:
        evaluations: how many different ones at most.
        value: of a choice, more is better; minus infinity where it cannot be had.
    """
    most = min(evaluations, len(space))
    meshes = _Meshes(space)
    worth: dict[Choice, float] = {}
    for choice in _asked(space, meshes, math.ceil(LOOKING_AROUND * most), seed, value):
        worth[choice] = value(choice)
        yield choice
    tried: set[Choice] = set()
    while len(worth) < most and (left := worth.keys() - tried):
        centre = max(left, key=lambda choice: worth[choice])  # the best whose neighbours are not known
        tried.add(centre)
        for choice in _neighbours(centre, space, meshes):
            if choice not in worth and len(worth) < most:
                worth[choice] = value(choice)
                yield choice
    for choice in space:  # small spaces: no more neighbours, but room for more
        if len(worth) == most:
            return
        if choice not in worth:
            worth[choice] = value(choice)
            yield choice


def _asked(
    space: Space, meshes: "_Meshes", count: int, seed: int, value: Callable[[Choice], float]
) -> Iterator[Choice]:
    """So many different choices that Optuna asks for."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(5, count // 3))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen: set[Choice] = set()
    for _ in range(20 * count):  # what is asked for again costs nothing, but it must end
        if len(seen) == count:
            return
        trial = study.ask()
        settings = {name: trial.suggest_categorical(name, values) for name, values in space.settings.items()}
        choice = Choice(meshes.suggest(trial), **settings)
        found = value(choice)
        if found == -math.inf:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, found)
        if choice not in seen:
            seen.add(choice)
            yield choice


def _neighbours(choice: Choice, space: Space, meshes: "_Meshes") -> Iterator[Choice]:
    """Choices that differ in one thing: a device works elsewhere, or a setting has the next value."""
    for mesh in meshes.near(choice.mesh):
        yield dataclasses.replace(choice, mesh=mesh)
    for name, values in space.settings.items():
        at = values.index(getattr(choice, name))
        for other in values[max(0, at - 1) : at] + values[at + 1 : at + 2]:
            yield dataclasses.replace(choice, **{name: other})


class _Meshes:
    """The meshes of a space by what has to be decided one after the other: which stages share instances and how wide
    those are, then how large the groups are, as shares of what is left."""

    def __init__(self, space: Space):
        self._kinds: dict[str, list[tuple[tuple[int, ...], str]]] = {}
        self._at: dict[str, tuple[str, tuple[int, ...]]] = {}
        for mesh in space.meshes():
            spec = MeshSpec.parse(mesh)
            kind = f"{spec.devices}: " + ",".join(f"{group.roles}x{group.tensor}" for group in spec.groups)
            counts = tuple(group.count for group in spec.groups)
            self._kinds.setdefault(kind, []).append((counts, mesh))
            self._at[mesh] = kind, counts

    def suggest(self, trial: Any) -> str:
        """The mesh of an Optuna trial."""
        left = self._kinds[trial.suggest_categorical("kind", tuple(self._kinds))]
        for group in range(2):
            share = trial.suggest_float(f"share {group}", 0.0, 1.0)
            counts = sorted({sizes[group] for sizes, _ in left if len(sizes) > group})
            if counts:
                wanted = counts[min(int(share * len(counts)), len(counts) - 1)]
                left = [(sizes, mesh) for sizes, mesh in left if sizes[group] == wanted]
        return left[0][1]

    def near(self, mesh: str) -> Iterator[str]:
        """Meshes of the same kind in which no group is larger or smaller by more than one."""
        kind, counts = self._at[mesh]
        for others, other in self._kinds[kind]:
            if other != mesh and all(abs(a - b) <= 1 for a, b in zip(counts, others, strict=True)):
                yield other
