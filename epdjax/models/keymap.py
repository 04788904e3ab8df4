"""How the tensor names and layouts of a Hugging Face checkpoint correspond to parameters of our modules.

One table of rules per family serves both directions: loading asks where a parameter's values are, exporting asks what
to call them. Paths of parameters are written with dots (``tower.layers.0.fc1.kernel``); ``{}`` stands for a layer's
number.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor is laid out in the checkpoint and in our parameter.

    Several parameters may share one tensor of the checkpoint (a fused qkv projection): each loads its piece of it, and
    saves it into the place where it belongs.

    Attributes:
        hf_shape: (shape of our parameter, model config) to the checkpoint's shape.
        load: (checkpoint tensor, our shape, model config) to our layout.
        save: (our array, tensor of the checkpoint's shape to write it into, model config).
    """

    hf_shape: Callable[[Shape, Any], Shape]
    load: Callable[[np.ndarray, Shape, Any], np.ndarray]
    save: Callable[[np.ndarray, np.ndarray, Any], None]


def _fill(x: np.ndarray, out: np.ndarray, _: Any) -> None:
    out[...] = x.reshape(out.shape)


def _fill_transposed(x: np.ndarray, out: np.ndarray, _: Any) -> None:
    out[...] = x.T


SAME = Transform(lambda shape, _: shape, lambda x, shape, _: x, _fill)
TRANSPOSED = Transform(lambda shape, _: shape[::-1], lambda x, shape, _: x.T, _fill_transposed)


def leading_ones(count: int) -> Transform:
    """`count` axes of length 1 that the checkpoint puts before ours."""
    return Transform(lambda shape, _: (1,) * count + shape, lambda x, shape, _: x.reshape(shape), _fill)


def fused_rows(index: int, count: int) -> Transform:
    """Block `index` of the `count` equal blocks of rows that torch fuses into one tensor."""

    def rows(x: np.ndarray) -> np.ndarray:
        size = len(x) // count
        return x[index * size : (index + 1) * size]

    def save(x: np.ndarray, out: np.ndarray, _: Any) -> None:
        rows(out)[...] = x

    return Transform(lambda shape, _: (count * shape[0], *shape[1:]), lambda x, shape, _: rows(x), save)


@dataclasses.dataclass(frozen=True)
class KeyRule:
    """One checkpoint name (``{}`` for the layer), the part and path it fills, and how it is laid out.

    Attributes:
        when: whether the rule holds under a model config, for families whose checkpoints name a part in several ways.
    """

    hf: str
    part: str
    path: str
    transform: Transform = SAME
    when: Callable[[Any], bool] = lambda config: True


def linear_rules(hf: str, part: str, path: str) -> tuple[KeyRule, ...]:
    """Weight and bias of a torch ``nn.Linear``."""
    return (
        KeyRule(f"{hf}.weight", part, f"{path}.kernel"),
        KeyRule(f"{hf}.bias", part, f"{path}.bias"),
    )


def fused_linear_rules(hf: str, part: str, paths: Iterable[str]) -> tuple[KeyRule, ...]:
    """Weight and bias of a torch ``nn.Linear`` that is several of our projections, one block of rows after another."""
    paths = tuple(paths)
    return tuple(
        KeyRule(f"{hf}.{theirs}", part, f"{path}.{ours}", fused_rows(i, len(paths)))
        for i, path in enumerate(paths)
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    )


def norm_rules(hf: str, part: str, path: str) -> tuple[KeyRule, ...]:
    """Weight and bias of a norm."""
    return KeyRule(f"{hf}.weight", part, f"{path}.scale"), KeyRule(f"{hf}.bias", part, f"{path}.bias")


@dataclasses.dataclass(frozen=True)
class Extra:
    """Tensors that a checkpoint may hold although the model has no parameter for them.

    Attributes:
        pattern: regular expression that the whole canonical name matches.
        when: whether the model config makes the tensor harmless.
        same_as: canonical name of the tensor it repeats; loading compares the two, since a difference would mean that
            the config misdescribes the checkpoint.
    """

    pattern: str
    when: Callable[[Any], bool] = lambda config: True
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """All rules of a family.

    Attributes:
        rules: one per kind of parameter; under any config each part and path at most once, a checkpoint name as often
            as it is shared.
        aliases: (prefix, canonical prefix) pairs for layouts that name the same tensors differently; first match wins.
        extras: known tensors to leave alone.
    """

    rules: tuple[KeyRule, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        by_path: dict[tuple[str, str], list[KeyRule]] = {}
        for rule in self.rules:
            by_path.setdefault((rule.part, rule.path), []).append(rule)
        object.__setattr__(self, "_by_path", by_path)

    def canonical(self, name: str) -> str:
        """The name as the rules spell it, for a name of any layout known."""
        for prefix, canonical in self.aliases:
            if name.startswith(prefix):
                return canonical + name.removeprefix(prefix)
        return name

    def source(self, part: str, path: str, config: Any) -> tuple[str, Transform]:
        """Canonical checkpoint name and layout of the parameter at `path` of `part` under `config`.

        Raises:
            KeyError: no rule; a parameter was added to a module and not to its table.
        """
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", path)
        rules = self._by_path[part, re.sub(r"(?<=\.)\d+(?=\.)", "{}", path)]  # type: ignore[attr-defined]
        holding = [rule for rule in rules if rule.when(config)]
        if len(holding) != 1:
            raise KeyError(f"{len(holding)} rules for {part}.{path}")
        return holding[0].hf.format(*numbers), holding[0].transform

    def extra(self, name: str, config: Any) -> Extra | None:
        """The rule that lets canonical `name` be left alone under `config`, if there is one."""
        return next((e for e in self.extras if re.fullmatch(e.pattern, name) and e.when(config)), None)


def flat(*groups: Iterable[KeyRule]) -> tuple[KeyRule, ...]:
    """Rules of several groups in one tuple."""
    return tuple(rule for group in groups for rule in group)
