"""Checkpoints: read once and straight into place, refused with every reason at once, written back."""

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from epdjax.models import (
    CheckpointError,
    abstract_part,
    checkpoint,
    config_of,
    export_hf,
    family_of,
    load_model,
    load_part,
)
from epdjax.models.orbax_io import save_converted
from tests.models.tiny import make_tiny_checkpoint, tiny_hf_config, tiny_model

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tied"), qk_norm=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("untied"), text="qwen2", tied=False)


def changed(source: Path, folder: Path, change: Any) -> Path:
    """A copy of a checkpoint whose tensors went through `change`."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")
    return folder


def values(state: Any) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(nnx.state(state))}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def place(first: int, count: int) -> checkpoint.Placement:
    """Heads, MLP and vocabulary over `count` devices."""
    mesh = Mesh(np.array(jax.devices()[first : first + count]), ("tensor",), axis_types=(AxisType.Auto,))

    def placement(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
        split = ("heads", "kv_heads", "mlp", "vocab")
        return NamedSharding(mesh, PartitionSpec(*("tensor" if axis in split else None for axis in axes)))

    return placement


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> collections.Counter:
    """How often the data of each tensor is read."""
    counter: collections.Counter = collections.Counter()

    class Spy:
        def __init__(self, *args: Any, **kwargs: Any):
            self.file = opened(*args, **kwargs)

        def __enter__(self) -> "Spy":
            self.file.__enter__()
            return self

        def __exit__(self, *exc: Any) -> None:
            self.file.__exit__(*exc)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> np.ndarray:
            counter[name] += 1
            return self.file.get_tensor(name)

    opened = checkpoint.safe_open
    monkeypatch.setattr(checkpoint, "safe_open", Spy)
    return counter


def test_two_sharded_copies_of_one_reading(untied: Path, reads: collections.Counter) -> None:
    family, config = family_of(untied), config_of(untied)
    states = load_part(untied, family, config, "language_model", [place(0, 2), place(2, 1)], jnp.float32)
    assert set(reads.values()) == {1}
    assert all(name.startswith("language_model.") for name in reads)
    stored = load_file(untied / "model.safetensors")
    assert len(reads) == sum(name.startswith("language_model.") for name in stored)
    for state, devices in zip(states, (2, 1), strict=True):
        read = values(state)
        np.testing.assert_array_equal(read["embedding"], stored[EMBEDDING])
        name = "language_model.model.layers.1.self_attn.q_proj.weight"
        np.testing.assert_array_equal(read["layers.1.attention.q_proj.kernel"], stored[name])
        kernel = dict(nnx.to_flat_state(state))["layers", 1, "attention", "q_proj", "kernel"].get_value()
        assert len(kernel.sharding.device_set) == devices
        assert kernel.addressable_shards[0].data.shape == (64 // devices, 64)
    assert_same(values(states[0]), values(states[1]))
    abstract = nnx.split(abstract_part(family, config, "language_model", jnp.float32))[1]
    assert jax.tree.structure(states[0]) == jax.tree.structure(abstract)


def test_dtype_is_that_asked_for(tied: Path) -> None:
    (state,) = load_part(tied, family_of(tied), config_of(tied), "encoder", [place(0, 1)], jnp.bfloat16)
    whole = load_model(tied)
    for name, value in values(state).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, values(whole.encoder)[name].astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_export_and_load_give_the_same_values(tmp_path: Path, dtype: str, limit: int) -> None:
    hf_config = tiny_hf_config(text="qwen2", tied=False, qk_norm=True, norm="rms_norm", final_norm=True)
    model = tiny_model(hf_config, seed=5, dtype=dtype)
    export_hf(model, hf_config, tmp_path, max_shard_bytes=limit)
    again = load_model(tmp_path)
    assert {str(value.dtype) for value in values(again).values()} == {dtype}
    assert_same(values(again), values(model))
    assert (limit > 10**6) == (tmp_path / "model.safetensors").is_file()
    export_hf(model, hf_config, tmp_path, "float32")  # over the old files, whichever they were
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert_same(values(load_model(tmp_path, dtype)), values(model))


def test_export_refuses_a_config_of_another_model(tmp_path: Path) -> None:
    model = tiny_model(tiny_hf_config())
    with pytest.raises(CheckpointError, match=r"language_model\.layers\.2") as caught:
        export_hf(model, tiny_hf_config(num_layers=3, num_kv_heads=4), tmp_path)
    assert "language_model.layers.0.attention.k_proj.kernel: (64, 64), config: (128, 64)" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_as_transformers_5_has_them_in_memory(untied: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name.replace("language_model.model.", "model.language_model.")
            .replace("language_model.lm_head", "lm_head")
            .replace("vision_tower.", "model.vision_tower.")
            .replace("multi_modal_projector.", "model.multi_modal_projector."): value
            for name, value in tensors.items()
        }

    folder = changed(untied, tmp_path, rename)
    assert EMBEDDING not in load_file(folder / "model.safetensors")
    assert_same(values(load_model(folder)), values(load_model(untied)))


def test_everything_wrong_is_in_one_error(untied: Path, tmp_path: Path, reads: collections.Counter) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        del tensors["vision_tower.encoder.layer.0.mlp.fc1.weight"]
        del tensors["language_model.model.norm.weight"]
        tensors["vision_tower.head.weight"] = np.zeros((3, 2), np.float32)
        tensors[EMBEDDING] = tensors[EMBEDDING][:-1]
        for i in range(30):
            tensors[f"language_model.model.layers.{i + 7}.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)

    folder = changed(untied, tmp_path, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_part(folder, family_of(folder), config_of(folder), "encoder", [place(0, 1)], jnp.float32)
    text = str(caught.value)
    assert "missing tensors (2)" in text
    assert "vision_tower.encoder.layer.0.mlp.fc1.weight [64, 32]" in text
    assert "language_model.model.norm.weight [64]" in text
    assert "unexpected tensors (31)" in text
    assert "... and 11 more" in text
    assert "vision_tower.head.weight [3, 2]" in caught.value.problems["unexpected tensors"]
    assert f"{EMBEDDING}: [303, 64], expected [304, 64]" in text
    assert not reads


def test_harmless_extras_are_left_alone(tied: Path, tmp_path: Path, reads: collections.Counter) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors[EMBEDDING].copy()
        tensors["vision_tower.embeddings.mask_token"] = np.zeros((1, 1, 32), np.float32)
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((16,), np.float32)

    folder = changed(tied, tmp_path, add)
    assert_same(values(load_model(folder)), values(load_model(tied)))
    assert "vision_tower.embeddings.mask_token" not in reads


def test_a_head_that_is_not_tied_after_all(tied: Path, tmp_path: Path) -> None:
    folder = changed(tied, tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[EMBEDDING] + 1})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_model(folder)


def test_a_tensor_under_two_names(untied: Path, tmp_path: Path) -> None:
    name = "language_model.lm_head.weight"
    folder = changed(untied, tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors[name].copy()})
    with pytest.raises(CheckpointError, match="stored twice"):
        load_model(folder)


def test_absent_and_broken_files(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "sharded", max_shard_bytes=60_000)
    shards = sorted(folder.glob("model-*"))
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:100])
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.problems["absent files"] == (shards[0].name,)
    assert caught.value.problems["unreadable files"][0].startswith(shards[2].name)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors or model\.safetensors\.index\.json"):
        load_model(folder)


def test_a_tensor_that_only_the_index_knows(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, max_shard_bytes=60_000)
    index = json.loads((folder / checkpoint.INDEX).read_text())
    index["weight_map"]["language_model.extra.weight"] = index["weight_map"][EMBEDDING]
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"in none of its files: language_model\.extra\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "fuyu"}, "'fuyu' is not supported; supported: .*internvl"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised .awq."),
        ({"vision_feature_layer": [1, 2]}, "vision_feature_layer"),
    ],
)
def test_models_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_hf_config() | change))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json in .*nowhere"):
        family_of(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        family_of(tmp_path)


def test_converted_folder_restores_onto_other_shardings(untied: Path, tmp_path: Path) -> None:
    family, config = family_of(untied), config_of(untied)
    original = {part: load_part(untied, family, config, part, [place(0, 2)], jnp.float32)[0] for part in family.parts}
    save_converted(tmp_path, original, untied)
    assert not list(tmp_path.glob("*.safetensors"))
    family, config = family_of(tmp_path), config_of(tmp_path)
    family.processor(tmp_path, config)
    for part in family.parts:
        copies = load_part(tmp_path, family, config, part, [place(4, 4), place(1, 1)], jnp.float32)
        for copy, devices in zip(copies, (4, 1), strict=True):
            assert_same(values(copy), values(original[part]))
            assert {len(x.sharding.device_set) for x in jax.tree.leaves(copy)} == {devices}
            assert jax.tree.structure(copy) == jax.tree.structure(original[part])
    assert_same(values(load_model(tmp_path, jnp.bfloat16)), values(load_model(untied, jnp.bfloat16)))


def test_converted_folder_of_another_version(untied: Path, tmp_path: Path) -> None:
    save_converted(tmp_path, {}, untied)
    (tmp_path / checkpoint.CONVERTED).write_text(json.dumps({"format": 1, "parts": []}))
    with pytest.raises(ValueError, match="has format 1 of converted checkpoints, expected 2"):
        load_model(tmp_path)


def test_converted_folder_of_another_model(untied: Path, tmp_path: Path) -> None:
    family, config = family_of(untied), config_of(untied)
    (state,) = load_part(untied, family, config, "encoder", [place(0, 1)], jnp.float32)
    save_converted(tmp_path, {"encoder": state}, untied)
    with pytest.raises(CheckpointError, match="language_model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_hf_config(qk_norm=True, text="qwen2")))
    with pytest.raises(CheckpointError, match=r"missing parameters \(6\)"):
        load_part(tmp_path, family, config_of(tmp_path), "encoder", [place(0, 1)], jnp.float32)
