"""MiniCPM-V 2.6 against outputs of its authors' code (see ``tests/goldens/README.md``)."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from epdjax.models import config_of, family_of, load_model
from epdjax.models.attention import blocked_attention
from epdjax.models.families.minicpmv.keys import MINICPMV_KEYS
from epdjax.models.families.minicpmv.model import MiniCPMVConfig, Resampler, cell_embedding
from epdjax.models.families.minicpmv.processor import MiniCPMVProcessor
from epdjax.models.families.minicpmv.slicing import cut, table_rows
from epdjax.models.keymap import KeyMap
from epdjax.models.media import EncodeUnit, MediaContext, MediaItem, Prompt, Video
from tests.models import dense
from tests.models.authors_outputs import check_answer, check_export
from tests.models.families import minicpmv as tiny

GOLDENS = Path(__file__).parent.parent / "goldens" / "minicpmv"
SLICING = json.loads((GOLDENS / "slicing.json").read_text())
BUCKETS = json.loads((GOLDENS / "position_buckets.json").read_text())
PROMPTS = json.loads((GOLDENS / "prompts.json").read_text())


@dataclasses.dataclass
class Golden:
    """The golden model as we load it, and what its authors' code makes of its inputs."""

    folder: Path
    model: Any
    items: tuple[MediaItem, ...]
    expected: dict[str, np.ndarray]

    @property
    def units(self) -> list[EncodeUnit]:
        return [unit for item in self.items for unit in item.units]

    @property
    def prompt(self) -> Prompt:
        e = self.expected
        return Prompt(e["input_ids"].astype(np.int32), e["image_token_positions"].astype(np.int32), self.items)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("golden")
    for file in (GOLDENS / "model").iterdir():
        shutil.copyfile(file, folder / file.name)
    tiny.write_processor_files(folder, scale_resolution=98)
    model = load_model(folder)
    expected = dict(np.load(folder / "io.npz"))
    processor = family_of(folder).processor(folder, model.config)
    items = tuple(processor.prepare_image(Image.fromarray(expected[f"image_{i}"])) for i in range(3))
    return Golden(folder, model, items, expected)


def test_slices_and_positions(golden: Golden) -> None:
    expected = golden.expected
    assert [len(item.units) for item in golden.items] == expected["slices_per_image"].tolist()
    sizes = [(unit.inputs["cells"].max(0) + 1).tolist() for unit in golden.units]
    assert sizes == expected["tgt_sizes"].tolist()
    for unit, ids in zip(golden.units, expected["vit_position_ids"], strict=True):
        assert unit.inputs["positions"].tolist() == ids[ids >= 0].tolist()


@pytest.mark.parametrize("size", [55, 98])
def test_encoder(golden: Golden, size: int) -> None:
    c, encoder = golden.model.config, golden.model.encoder
    assert c.unit_sizes(100) == (55, 98)
    inputs: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in c.unit_inputs(size).items():
        inputs[name] = np.zeros((len(golden.units), *shape), dtype)
        for row, unit in zip(inputs[name], golden.units, strict=True):
            row[: unit.size] = unit.inputs[name]
    pixels = (inputs["patches"] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    features = np.array(
        encoder.tower(jnp.asarray(pixels, jnp.float32), inputs["positions"], inputs["valid"], blocked_attention)
    )
    features[~inputs["valid"]] = 0
    np.testing.assert_allclose(features[:, :48], golden.expected["vit_last_hidden_state"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(encoder(inputs), golden.expected["image_embeds"], rtol=0, atol=2e-5)


def test_logits(golden: Golden) -> None:
    logits = dense.logits(golden.model, golden.prompt)
    np.testing.assert_allclose(logits, golden.expected["logits"], rtol=0, atol=5e-5)


def test_greedy(golden: Golden) -> None:
    e = golden.expected
    check_answer(golden.model, golden.prompt, e["greedy_ids"], e["greedy_logits"], atol=5e-5)


def test_export_writes_the_same_tensors(golden: Golden, tmp_path: Path) -> None:
    check_export(golden.model, golden.folder, tmp_path)


def test_resampler_of_two_heads() -> None:
    folder = GOLDENS / "resampler_2heads"
    meta, io = json.loads((folder / "meta.json").read_text()), np.load(folder / "io.npz")
    module = Resampler(
        meta["embed_dim"], meta["kv_dim"], meta["num_queries"], dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    _fill(module, load_file(folder / "model.safetensors"), MINICPMV_KEYS)
    features, sizes = io["features"], io["tgt_sizes"]
    cells, valid = np.zeros((*features.shape[:2], 2), np.int32), np.zeros(features.shape[:2], bool)
    for i, (rows, columns) in enumerate(sizes):
        cells[i, : rows * columns] = np.indices((rows, columns)).reshape(2, -1).T
        valid[i, : rows * columns] = True
    np.testing.assert_allclose(module(features, cells, valid, blocked_attention), io["output"], rtol=0, atol=2e-5)
    grid = np.indices((5, 7)).transpose(1, 2, 0)
    np.testing.assert_allclose(cell_embedding(jnp.asarray(grid), 256), io["pos_embed_5x7"], rtol=0, atol=1e-6)


def _fill(resampler: nnx.Module, tensors: dict[str, np.ndarray], keys: KeyMap) -> None:
    state = {}
    for path, variable in nnx.to_flat_state(nnx.state(resampler)):
        name, transform = keys.source("encoder", ".".join(("resampler", *map(str, path))), None)
        state[path] = variable.replace(jnp.asarray(transform.load(tensors[name], variable.shape, None)))
    nnx.update(resampler, nnx.from_flat_state(state))


# ---- processing -----------------------------------------------------------------------------------------------------


def processor(folder: Path, chat_template: str | None = None, **settings: Any) -> MiniCPMVProcessor:
    """Of a checkpoint with no weights; sizes as they really are, and `settings` of pictures."""
    hf_config = json.loads((GOLDENS / "model" / "config.json").read_text()) | {"query_num": 64}
    hf_config["vision_config"]["image_size"] = 980
    (folder / "config.json").write_text(json.dumps(hf_config))
    tiny.write_processor_files(folder, **settings)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return MiniCPMVProcessor(folder, config_of(folder))


def test_sizes_of_every_picture(tmp_path: Path) -> None:
    made = processor(tmp_path)
    for case in SLICING["cases"]:
        width, height = case["width"], case["height"]
        done = cut(width, height, 448, 14, 9)
        assert done.whole == tuple(case["source_size"]), case
        assert done.grid == (case["grid"] and tuple(case["grid"])), case
        assert done.slices == (case["refine_size"] and tuple(case["refine_size"])), case
        assert [[h // 14, w // 14] for w, h in done.sizes] == case["tgt_sizes"], case
        shape = made.media_shape(width, height)
        assert (shape.units, shape.tokens) == (case["slices"], case["query_tokens"]), case
        assert max(w * h for w, h in done.sizes) <= made.config.unit_sizes(64)[0] * 14 * 14, case


@pytest.mark.parametrize("side", [70, 7])
def test_rows_of_the_position_table(side: int) -> None:
    for patches, rows in BUCKETS[f"side_{side}"].items():
        assert table_rows(int(patches), side).tolist() == [int(row) for row in rows.split()], patches


def test_pixels(tmp_path: Path) -> None:
    pixels = np.load(GOLDENS / "pixels.npz")
    made = processor(tmp_path, scale_resolution=112)
    for name in "abc":
        item = made.prepare_image(Image.fromarray(pixels[f"image_{name}"]))
        sizes = pixels[f"{name}_112_tgt_sizes"]
        assert [unit.size for unit in item.units] == [rows * columns for rows, columns in sizes]
        for k, unit in enumerate(item.units):
            theirs = pixels[f"{name}_112_{k}"].reshape(3, 14, -1, 14).transpose(2, 1, 3, 0)
            np.testing.assert_array_equal(unit.inputs["patches"].reshape(theirs.shape), theirs)
    (unit,) = processor(tmp_path).prepare_image(Image.fromarray(pixels["image_a"])).units
    height, width, _ = pixels["a_448_shape"]
    whole = unit.inputs["patches"].reshape(height // 14, width // 14, 14, 14, 3).swapaxes(1, 2)
    assert hashlib.sha256(np.ascontiguousarray(whole)).hexdigest() == pixels["a_448_sha256"]


def expansion(text: str) -> str:
    return re.sub(r"\{<unk> x (\d+)\}", lambda match: "<unk>" * int(match[1]), text)


def test_prompts(tmp_path: Path) -> None:
    for name, case in PROMPTS["examples"].items():
        made = processor(tmp_path, **case.get("options", {}))
        *pictures, question = case["user_content"].split("\n")
        assert len(pictures) == len(case["image_sizes"])
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": Image.new("RGB", tuple(size))} for size in case["image_sizes"]
        ]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        template = PROMPTS["chat_template"]["text"]
        assert made.render(messages) == template.replace("{content}", case["user_content"])
        expected = template.replace("{content}", expansion(case["prompt_after_expansion"]))
        prompt = made.prompt(messages)
        assert prompt.token_ids.tolist() == made.tokenizer(expected).input_ids, name
        stops = [made.tokenizer.convert_tokens_to_ids(stop) for stop in PROMPTS["chat_template"]["stop_tokens"]]
        assert made.eos_token_ids >= set(stops)


def test_the_checkpoints_own_template_wins(tmp_path: Path) -> None:
    made = processor(tmp_path, "{% for m in messages %}[{{ m['role'] + ': ' + m['content'] }}]{% endfor %}")
    parts = [{"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "this"}]
    assert made.render([{"role": "user", "content": parts}]) == "[user: See\n(<image>./</image>)\nthis]"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (50, 1), (1, 50), (40, 3), (3, 40), (3, 3), (200, 3)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    made = processor(tmp_path, scale_resolution=112)
    item = made.prepare_image(image)
    assert item.tokens == made.media_shape(width, height).tokens == 64
    unit = item.units[0]
    assert unit.size <= made.config.most_patches
    columns = unit.inputs["cells"][-1, 1] + 1
    new_width, new_height = columns * 14, unit.size // columns * 14
    across = image.resize((new_width, height), Image.Resampling.BICUBIC)  # first, whatever Pillow does
    whole = np.asarray(across.resize((new_width, new_height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(unit.inputs["patches"][0].reshape(14, 14, 3), whole[:14, :14])


@pytest.mark.parametrize(("size", "complaint"), [((1, 9000), "too long and narrow"), ((0, 5), "no content")])
def test_pictures_that_are_refused(tmp_path: Path, size: tuple[int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor(tmp_path).prepare_image(Image.new("RGB", size))


def test_transparency_is_white(tmp_path: Path) -> None:
    (unit,) = processor(tmp_path).prepare_image(Image.new("RGBA", (30, 30), (9, 9, 9, 0))).units
    assert (unit.inputs["patches"] == 255).all()


def test_video(tmp_path: Path) -> None:
    made = processor(tmp_path, scale_resolution=56)
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 200, 3), np.uint8)
    video = Video(frames, np.arange(2) / 1.0, 1.0)
    picture = Image.fromarray(frames[0])
    parts = [{"type": "video", "video": video}, {"type": "image", "image": picture}, {"type": "text", "text": "So?"}]
    prompt = made.prompt([{"role": "user", "content": parts}])
    looks = expansion("<image>{<unk> x 64}</image><slice>{<unk> x 64}</slice><slice>{<unk> x 64}</slice>")
    assert f"user\n{looks}\n{looks}\n{looks}\nSo?<|im_end|>" in made.tokenizer.decode(prompt.token_ids)
    clip, shown = prompt.media
    alone = made.prepare_image(picture, MediaContext(images=1))
    assert (len(clip.units), len(shown.units), len(alone.units)) == (6, 3, 4)
    for ours, theirs in zip(clip.units, shown.units, strict=False):
        np.testing.assert_array_equal(ours.inputs["patches"], theirs.inputs["patches"])
    assert made.sample_frames(100, 29.97).tolist() == [0, 30, 60, 90]
    long = made.sample_frames(30 * 200, 30.0)
    assert (len(long), long[0], long[-1]) == (64, 30, 5940)
    assert made.sample_frames(3, 0.4).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "preprocessor", "complaint"),
    [
        ({"version": 2.5}, {}, r"version is 2\.5"),
        ({"version": None}, {}, "version is None"),
        ({"slice_mode": False}, {}, "slice_mode is false"),
        ({}, {"slice_mode": False}, "slice_mode is false"),
        ({"hidden_size": 192}, {}, "hidden_size is 192"),
        ({}, {"patch_size": 16}, "patches of 16, not of 14"),
        ({"rope_scaling": {"type": "yarn"}}, {}, "yarn"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], preprocessor: dict[str, Any], complaint: str) -> None:
    hf_config = json.loads((GOLDENS / "model" / "config.json").read_text())
    with pytest.raises(ValueError, match=complaint):
        MiniCPMVConfig.from_hf(hf_config | changes, preprocessor)


def test_the_last_layer_is_dropped_unless_kept() -> None:
    hf_config = json.loads((GOLDENS / "model" / "config.json").read_text())
    assert MiniCPMVConfig.from_hf(hf_config).vision.num_layers == 3
    del hf_config["drop_vision_last_layer"]
    assert MiniCPMVConfig.from_hf(hf_config).vision.num_layers == 2
