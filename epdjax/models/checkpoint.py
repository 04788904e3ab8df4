"""Safetensors checkpoints in the Hugging Face layout: read straight into their shardings, and written back.

A module is built without values, its headers are compared with the checkpoint's before any data is read, and then each
tensor is read once (memory-mapped, cast on the host) and put wherever a deployment needs it. No random weights are ever
made, and the data of other parts is not touched.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from epdjax.models.keymap import Shape, Transform
from epdjax.models.reading import CONVERTED, FETCH, INDEX, SINGLE, is_pointer, read_json
from epdjax.models.registry import Family, abstract_part, config_of, dtype_of, family_for, family_of

Placement = Callable[[tuple[str | None, ...], Shape], jax.sharding.Sharding]
"""(logical axes, shape) of a parameter to where it goes."""

FLOATS = ("F64", "F32", "F16", "BF16")  # types of tensors that are read, as safetensors writes them
OTHER_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors")
POINTERS = f"Git LFS pointers, not the files that they stand for: {FETCH}"
SHOWN = 20  # names printed of each kind of trouble; the rest are counted


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, all of it at once.

    Attributes:
        problems: kind of trouble to the files or tensors that have it.
    """

    def __init__(self, what: str, problems: Mapping[str, Sequence[str]]):
        self.problems = {kind: tuple(names) for kind, names in problems.items() if names}
        super().__init__(f"{what}: {_listed(self.problems)}")


def _listed(problems: Mapping[str, Sequence[str]]) -> str:
    """One sentence for one trouble, a list for several."""
    if sum(map(len, problems.values())) == 1:
        [(kind, [name])] = problems.items()
        return f"{kind}: {name}"
    lines = [""]
    for kind, names in problems.items():
        lines += [f"{kind} ({len(names)}):", *(f"  {name}" for name in names[:SHOWN])]
        if len(names) > SHOWN:
            lines.append(f"  ... and {len(names) - SHOWN} more")
    return "\n".join(lines)


class Tensors:
    """The tensors of a checkpoint folder, by canonical name; opening it reads headers only."""

    def __init__(self, folder: str | Path, canonical: Callable[[str], str] = lambda name: name):
        """Find the files of `folder`: ``model.safetensors``, or the shards of its index.

        Raises:
            CheckpointError: neither is there, or some files are absent or unreadable.
        """
        self.folder = Path(folder)
        kinds = ("absent files", "unreadable files", POINTERS, "tensors stored twice")
        problems: dict[str, list[str]] = {kind: [] for kind in kinds}
        files, promised = self._files()
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, str] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for path in files:
            if not path.is_file():
                problems["absent files"].append(path.name)
                continue
            try:
                if is_pointer(path):
                    problems[POINTERS].append(path.name)
                    continue
                with safe_open(path, framework="np") as file:
                    headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                problems["unreadable files"].append(f"{path.name}: {error}; download it again")
                continue
            for name, header in headers.items():
                if (key := canonical(name)) in self.shapes:
                    problems["tensors stored twice"].append(name)
                self.shapes[key], self._where[key] = tuple(header.get_shape()), (path, name)
                self.types[key] = header.get_dtype()
        held = {name for _, name in self._where.values()}
        if not any(problems[kind] for kind in ("absent files", "unreadable files", POINTERS)):
            problems["in the index but in none of its files"] = sorted(promised - held)
        if any(problems.values()):
            raise CheckpointError(f"cannot load {folder}", problems)

    def _files(self) -> tuple[list[Path], set[str]]:
        if (single := self.folder / SINGLE).is_file():
            return [single], set()
        if not (index := self.folder / INDEX).is_file():
            raise CheckpointError(f"cannot load {self.folder}", {"absent files": [self._absent()]})
        try:
            weight_map = read_json(index)["weight_map"]
            return [self.folder / name for name in sorted(set(weight_map.values()))], set(weight_map)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            why = error if isinstance(error, ValueError) else f"{INDEX} names no file for each tensor: {error!r}"
            raise CheckpointError(f"cannot load {self.folder}", {"unreadable files": [str(why)]}) from None

    def _absent(self) -> str:
        """That there are no weights, and what there is in their place."""
        absent = f"{SINGLE} or {INDEX}"
        others = sorted(path.name for path in self.folder.glob("*") if path.suffix in OTHER_WEIGHTS)
        if not others:
            return absent
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        return (
            f"{absent}; there are {shown}, which are not read: convert them with transformers, by "
            "from_pretrained(folder).save_pretrained(new_folder)"
        )

    def read(self, key: str) -> np.ndarray:
        """The data of one tensor."""
        path, name = self._where[key]
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)


def _parameters(module: nnx.Module) -> dict[tuple, nnx.Variable]:
    return dict(nnx.to_flat_state(nnx.state(module)))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def check(family: Family, config: Any, tensors: Tensors) -> None:
    """Compare the headers of a checkpoint with all parts of the model.

    Raises:
        CheckpointError: listing every missing, unexpected and wrongly shaped tensor.
    """
    expected: dict[str, Shape] = {}
    for part in family.parts:
        module = abstract_part(family, config, part, jnp.float32)
        for path, variable in _parameters(module).items():
            name, transform = family.key_map.source(part, _dotted(path), config)
            expected[name] = transform.hf_shape(variable.shape, config)
    held = tensors.shapes
    problems = {
        "missing tensors": [f"{name} {list(shape)}" for name, shape in expected.items() if name not in held],
        "unexpected tensors": [
            f"{name} {list(shape)}"
            for name, shape in held.items()
            if name not in expected and family.key_map.extra(name, config) is None
        ],
        "tensors of another shape": [
            f"{name}: {list(held[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in held and held[name] != shape
        ],
        f"tensors of other types than {', '.join(FLOATS)}, as quantised checkpoints have (use the unquantised one)": [
            f"{name}: {tensors.types[name]}" for name in expected if name in held and tensors.types[name] not in FLOATS
        ],
    }
    if any(problems.values()):
        raise CheckpointError(f"cannot load {tensors.folder}: it is not the model that config.json describes", problems)


def load_part(
    folder: str | Path, family: Family, config: Any, part: str, placements: Sequence[Placement], dtype: Any
) -> list[nnx.State]:
    """Fill one part of a model from a checkpoint, once per placement.

    Args:
        folder: with ``model.safetensors`` or a sharded index; or one that `save_converted` wrote.
        family: of the model, see `family_of`.
        config: of the model, see `config_of`.
        part: ``encoder`` or ``language_model``.
        placements: one per copy wanted: where each parameter goes, from its logical axes and shape. Each tensor is
            read and cast once, however many copies there are.
        dtype: that the parameters get, whatever the checkpoint's is.

    Returns:
        One state per placement, with the structure of ``nnx.split(abstract_part(...))[1]``.

    Raises:
        CheckpointError: files absent or unreadable; tensors missing, unexpected or of another shape, in any part of the
            model, all in one message; tied embeddings that are not the same.
    """
    if (Path(folder) / CONVERTED).is_file():
        from epdjax.models.orbax_io import restore_converted  # Orbax takes a second to import, and few folders need it

        return restore_converted(folder, family, config, part, placements, dtype)
    tensors = Tensors(folder, family.key_map.canonical)
    check(family, config, tensors)
    repeats: dict[str, list[str]] = {}
    for other in tensors.shapes:
        if (extra := family.key_map.extra(other, config)) is not None and extra.same_as is not None:
            repeats.setdefault(extra.same_as, []).append(other)
    states: list[dict[tuple, nnx.Variable]] = [{} for _ in placements]
    wanted: dict[str, list[tuple[tuple, nnx.Variable, Transform]]] = {}
    for path, variable in _parameters(abstract_part(family, config, part, dtype)).items():
        name, transform = family.key_map.source(part, _dotted(path), config)
        wanted.setdefault(name, []).append((path, variable, transform))
    for name, pieces in wanted.items():
        raw = tensors.read(name)
        for other in repeats.get(name, ()):
            if not np.array_equal(tensors.read(other), raw):
                trouble = f"differ from {name} although tie_word_embeddings is true (set it to false)"
                raise CheckpointError(f"cannot load {folder}", {trouble: [other]})
        for path, variable, transform in pieces:
            value = np.ascontiguousarray(transform.load(raw, variable.shape, config), dtype=dtype)
            axes = variable.get_metadata("logical_axes")
            for state, placement in zip(states, placements, strict=True):
                state[path] = variable.replace(jax.device_put(value, placement(axes, variable.shape)))
    return [nnx.from_flat_state(state) for state in states]


def on_device(device: jax.Device | None = None) -> Placement:
    """A placement that puts everything on one device; default: the first."""
    sharding = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
    return lambda axes, shape: sharding


def load_model(folder: str | Path, dtype: Any = None) -> nnx.Module:
    """The whole model of a checkpoint, every part, on the first device.

    Args:
        folder: see `load_part`.
        dtype: of the parameters; default: what the checkpoint says it is stored in.

    Raises:
        ValueError: the config is not supported.
        CheckpointError: see `load_part`.
    """
    family, config = family_of(folder), config_of(folder)
    dtype = dtype_of(folder) if dtype is None else jnp.dtype(dtype)
    model = nnx.eval_shape(lambda: family.model(config, dtype=dtype, rngs=nnx.Rngs(0)))
    for part in family.parts:
        (state,) = load_part(folder, family, config, part, [on_device()], dtype)
        nnx.update(getattr(model, part), state)
    return model


def export_hf(
    model: nnx.Module,
    hf_config: Mapping[str, Any],
    folder: str | Path,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model as transformers' ``from_pretrained`` reads it: ``config.json`` and safetensors.

    Args:
        model: all parts, for example what `load_model` returns.
        hf_config: what ``config.json`` is to say of it.
        folder: made if need be; weights already in it are replaced.
        dtype: to store; default: that of each parameter.
        max_shard_bytes: beyond this the weights are split into shards with an index.

    Raises:
        CheckpointError: `hf_config` describes a model of other shapes.
        ValueError: `hf_config` is not supported.
    """
    family = family_for(hf_config)
    config = family.read_config(hf_config, None)
    pieces: dict[str, list[tuple[nnx.Variable, Transform]]] = {}
    shapes: dict[str, Shape] = {}
    problems: dict[str, list[str]] = {"parameters of another shape": [], "parameters not in both": []}
    for part in family.parts:
        wanted = _parameters(abstract_part(family, config, part, jnp.float32))
        held = _parameters(getattr(model, part))
        problems["parameters not in both"] += sorted(f"{part}.{_dotted(p)}" for p in wanted.keys() ^ held.keys())
        for path in wanted.keys() & held.keys():
            if held[path].shape != wanted[path].shape:
                problems["parameters of another shape"].append(
                    f"{part}.{_dotted(path)}: {held[path].shape}, config: {wanted[path].shape}"
                )
            name, transform = family.key_map.source(part, _dotted(path), config)
            pieces.setdefault(name, []).append((held[path], transform))
            shapes[name] = transform.hf_shape(wanted[path].shape, config)
    if any(problems.values()):
        raise CheckpointError(f"cannot export to {folder}: hf_config describes another model", problems)

    def stored(name: str) -> np.dtype:
        return np.dtype(pieces[name][0][0].dtype if dtype is None else dtype)

    def read(name: str) -> np.ndarray:
        value = np.empty(shapes[name], stored(name))
        for variable, transform in pieces[name]:
            transform.save(np.asarray(jax.device_get(variable.get_value())), value, config)
        return value

    sizes = {name: prod(shapes[name]) * stored(name).itemsize for name in sorted(pieces)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    shards = _shards(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file({name: read(name) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
    dtypes = {stored(name).name for name in sizes}
    written = {key: value for key, value in hf_config.items() if key != "torch_dtype"}
    _write_json(folder / "config.json", written | ({"dtype": dtypes.pop()} if len(dtypes) == 1 else {}))


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes (a tensor beyond that has its own)."""
    shards: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if shards[-1] and total + size > limit:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += size
    return shards


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
