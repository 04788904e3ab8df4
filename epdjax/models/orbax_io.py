"""Converted checkpoints: parameters already in our layout, an Orbax checkpoint per part, stored and restored in shards.

A converted folder also holds copies of the config, tokenizer and processor files, so it is used in place of the
original: `load_part` recognises it by its marker file.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from epdjax.models.checkpoint import CheckpointError, Placement
from epdjax.models.reading import CONVERTED, read_json
from epdjax.models.registry import Family, abstract_part

FORMAT = 2  # 1 had kernels [in, out]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".index.json")


def _flat(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def save_converted(folder: str | Path, part_states: Mapping[str, nnx.State], source: str | Path) -> None:
    """Write parts as they are, whatever their shardings.

    Args:
        folder: made if need be; parts already in it are replaced.
        part_states: states by the names of the parts, for example of `load_part`.
        source: the checkpoint folder they came from; its files other than weights are copied.
    """
    folder, source = Path(folder).absolute(), Path(source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONVERTED).unlink(missing_ok=True)  # the marker comes last: half a folder is no checkpoint
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name != CONVERTED and path.parent != folder:
            shutil.copyfile(path, folder / path.name)
    with ocp.StandardCheckpointer() as checkpointer:
        for part, state in part_states.items():
            arrays = {name: variable.get_value() for name, variable in _flat(state).items()}
            checkpointer.save(folder / part, arrays, force=True)
    head = any(name.startswith("head.") for name in _flat(part_states.get("language_model", nnx.State({}))))
    marker = {"format": FORMAT, "parts": sorted(part_states), "head": head}
    (folder / CONVERTED).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def restore_converted(
    folder: str | Path, family: Family, config: Any, part: str, placements: Sequence[Placement], dtype: Any
) -> list[nnx.State]:
    """`load_part` for a folder that `save_converted` wrote; each device reads only its shards of the first placement.

    Raises:
        CheckpointError: the folder lacks the part, or its parameters are missing, unexpected or of another shape.
        ValueError: the folder was written by another version.
    """
    folder = Path(folder).absolute()
    marker = read_json(folder / CONVERTED)
    if marker.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {marker.get('format')} of converted checkpoints, expected {FORMAT}")
    if part not in marker["parts"]:
        raise CheckpointError(f"cannot load {folder}", {"absent files": [part]})
    variables = _flat(nnx.state(abstract_part(family, config, part, dtype)))
    with ocp.StandardCheckpointer() as checkpointer:
        _check(folder, part, variables, checkpointer.metadata(folder / part).item_metadata)
        if not placements:
            return []
        shardings = [
            {name: place(v.get_metadata("logical_axes"), v.shape) for name, v in variables.items()}
            for place in placements
        ]
        targets = {
            name: jax.ShapeDtypeStruct(v.shape, np.dtype(dtype), sharding=shardings[0][name])
            for name, v in variables.items()
        }
        first = checkpointer.restore(folder / part, targets)
    copies = [first, *(jax.device_put(first, sharding) for sharding in shardings[1:])]
    state = nnx.state(abstract_part(family, config, part, dtype))
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    return [
        nnx.from_flat_state({paths[name]: v.replace(arrays[name]) for name, v in variables.items()})
        for arrays in copies
    ]


def _check(folder: Path, part: str, variables: Mapping[str, nnx.Variable], metadata: Any) -> None:
    held = {name: tuple(array.shape) for name, array in dict(metadata).items()}
    problems = {
        "missing parameters": [f"{part}.{name}" for name in variables if name not in held],
        "unexpected parameters": [f"{part}.{name}" for name in held if name not in variables],
        "parameters of another shape": [
            f"{part}.{name}: {list(held[name])}, expected {list(v.shape)}"
            for name, v in variables.items()
            if name in held and held[name] != v.shape
        ],
    }
    if any(problems.values()):
        raise CheckpointError(f"cannot load {folder}", problems)
