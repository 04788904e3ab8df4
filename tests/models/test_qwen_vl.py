"""Qwen-VL's pictures, videos and configs, without weights: sizes, patches, frames, positions, refusals."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from epdjax.mesh.targets import target_devices
from epdjax.models import config_of, family_of
from epdjax.models.families.qwen_vl.model import QwenVLConfig
from epdjax.models.families.qwen_vl.patches import position_taps, window_slots
from epdjax.models.families.qwen_vl.processor import Qwen2VLProcessor
from epdjax.models.families.qwen_vl.video import ClipSettings, VideoSettings, group_seconds, sampled_fps
from epdjax.models.families.qwen_vl.vit import QwenVisionConfig, QwenVisionTower
from epdjax.models.media import EncodeUnit, Video
from epdjax.models.processing.pictures import like_torchvision
from epdjax.models.registry import family_for, read_hf_config
from tests.models.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from tests.models.qwen_vl_tiny import clip, picture

MODULES = {module.MODEL_TYPE: module for module in (qwen2_vl, qwen2_5_vl, qwen3_vl)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, module in MODULES.items():
        made[name] = tmp_path_factory.mktemp(name)
        module.make(made[name])
    return made


@pytest.fixture(params=sorted(MODULES))
def processor(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Qwen2VLProcessor:
    return load(folders[request.param])


def load(folder: Path) -> Any:
    return family_of(folder).processor(folder, config_of(folder))


def patches_in_order(unit: EncodeUnit, cell: int) -> np.ndarray:
    """A unit's patches, merge square after merge square of the picture, empty slots left out."""
    cells = unit.inputs["patches"].reshape(-1, cell, unit.inputs["patches"].shape[-1])
    return (cells if unit.picks is None else cells[unit.picks]).reshape(-1, cells.shape[-1])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(70, 45), (1, 3), (3, 40), (200, 1), (16, 16)])
def test_patches_are_those_of_the_hf_image_processor(
    processor: Qwen2VLProcessor, folders: dict[str, Path], mode: str, size: tuple[int, int]
) -> None:
    image = picture(5, *size).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    item, vision = processor.prepare_image(image), processor.config.vision
    hf = like_torchvision(Qwen2VLImageProcessorPil).from_pretrained(processor.folder)
    out = hf(image, do_rescale=False, do_normalize=False)
    (unit,) = item.units
    ours = patches_in_order(unit, vision.cell)
    channels_last = (-1, vision.temporal_patch_size, vision.patch_size, vision.patch_size, 3)
    theirs = np.asarray(out["pixel_values"])
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours.reshape(channels_last).transpose(0, 4, 1, 2, 3).reshape(theirs.shape), theirs)
    assert unit.tokens == item.tokens == len(theirs) // vision.cell
    assert unit.inputs["valid"].sum() == len(theirs)
    (grid,) = item.meta["grids"]
    assert [1, *(vision.merge_size * n for n in grid[1:])] == out["image_grid_thw"][0].tolist()


def test_every_picture_fits_the_largest_unit(folders: dict[str, Path]) -> None:
    """Also thin ones, which fill their windows badly; a picture never makes more tokens than `unit_limit`."""
    for name in MODULES:
        config = published(folders[name])
        assert config.unit_limit is not None
        largest = config.unit_sizes(10**6)[-1]
        rng = np.random.default_rng(0)
        sizes = np.exp(rng.uniform(0, np.log(9000), (3000, 2))).astype(int)
        thin = [(int(a), int(a * 200)) for a in range(1, 200)]
        for width, height in itertools.chain(sizes.tolist(), thin):
            if max(width, height) > 200 * min(width, height):
                continue
            rows, columns = cells(config, height, width, SETTINGS[name])
            assert rows * columns <= config.unit_limit
            side = max(config.vision.window, 1)
            windows = -(-rows // side) * -(-columns // side)
            assert windows * config.vision.slots <= largest


def cells(config: QwenVLConfig, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """(rows, columns) of MM tokens of a picture."""
    side = config.vision.patch_size * config.vision.merge_size
    size = settings["size"]
    rows, columns = smart_resize(height, width, side, size["shortest_edge"], size["longest_edge"])
    return rows // side, columns // side


SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
    "qwen2_5_vl": {
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}
    },  # where thin pictures break bounds
    "qwen3_vl": {"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
}


def published(folder: Path) -> QwenVLConfig:
    """A tiny checkpoint's config, its patches and windows of the real sizes."""
    config = read_hf_config(folder)
    name = config["model_type"]
    config["vision_config"] |= {"patch_size": 16 if name == "qwen3_vl" else 14, "window_size": 112}
    return family_for(config).read_config(config, SETTINGS[name])


def test_unit_sizes_are_a_ladder(folders: dict[str, Path]) -> None:
    config = published(folders["qwen3_vl"])
    assert config.unit_sizes(1000) == (256, 512, 1024, 2048, 4000)
    assert config.unit_sizes(10) == (40,)
    assert all(size % config.vision.slots == 0 for size in published(folders["qwen2_5_vl"]).unit_sizes(3000))


@pytest.mark.parametrize(("rows", "columns", "side"), [(1, 1, 4), (5, 7, 3), (8, 4, 4), (1, 9, 2)])
def test_windows_hold_every_token_once(rows: int, columns: int, side: int) -> None:
    slots, picks = window_slots(rows, columns, side)
    assert len(slots) == -(-rows // side) * -(-columns // side) * side**2
    np.testing.assert_array_equal(slots[picks], np.arange(rows * columns))
    assert (slots >= 0).sum() == rows * columns
    windows = slots.reshape(-1, side**2)
    for window in windows:
        held = window[window >= 0]
        assert np.ptp(held // columns) < side
        assert np.ptp(held % columns) < side


def test_positions_meet_the_corners_of_the_table() -> None:
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(5), indexing="ij"), -1).reshape(-1, 2)
    rows, weights = position_taps(grid, 3, 5, 7)
    table = np.arange(49, dtype=np.float32)
    at = (table[rows] * weights).sum(-1).reshape(3, 5)
    np.testing.assert_allclose(at[[0, 0, 2, 2], [0, 4, 0, 4]], [0, 6, 42, 48], rtol=1e-6)
    np.testing.assert_allclose(at[1, 1], 3 * 7 + 1.5, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    one, _ = position_taps(np.zeros((1, 2), int), 1, 1, 7)
    assert one[0, 0] == 0


@pytest.mark.deviceless
@pytest.mark.parametrize("window", [0, 4])
def test_the_longest_units_compile_for_gpus(window: int) -> None:
    """At real widths, and without scores of all patches by all patches."""
    vision = QwenVisionConfig(
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        hidden_size=1280,
        num_layers=2,
        num_heads=16,
        mlp_size=3420,
        hidden_act="silu",
        out_size=3584,
        norm_type="rms_norm",
        gated_mlp=True,
        patch_bias=False,
        window=window,
        full_layers=(1,),
    )
    sharding = jax.sharding.SingleDeviceSharding(target_devices("h100-80g", 1)[0])
    tower = nnx.eval_shape(lambda: QwenVisionTower(vision, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(tower)
    patches, shapes = 65536, {"patches": (vision.patch_values,), "grid": (2,), "valid": ()}
    dtypes = {"patches": jnp.bfloat16, "grid": jnp.int32, "valid": jnp.bool_}

    def here(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = jax.tree.map(lambda x: here(x.shape, x.dtype), state)
    inputs = [here((1, patches, *shape), dtypes[name]) for name, shape in shapes.items()]
    compiled = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs)).lower(state, *inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * 2**30


def test_frames_looked_at() -> None:
    each = VideoSettings.from_hf({})
    assert each.sample(100, 30.0, 2).tolist() == [0, 16, 33, 50, 66, 83]
    assert each.sample(3, 30.0, 2).tolist() == [0, 1]
    assert each.sample(1, 30.0, 2).tolist() == [0]
    assert len(each.sample(100_000, 30.0, 2)) == 768
    assert VideoSettings.from_hf({"num_frames": 5}).sample(100, 30.0, 2).tolist() == [0, 25, 50, 75]
    whole = ClipSettings.from_hf({"fps": 1})
    assert whole.sample(100, 10.0, 2).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert whole.sample(2, 10.0, 2).tolist() == [0, 1]


@pytest.mark.parametrize(("frames", "step", "fps", "rate"), [(5, 4, 8.0, 2.0), (6, 1, 30.0, 30.0), (1, 1, 12.0, 12.0)])
def test_rate_of_the_frames_kept(frames: int, step: int, fps: float, rate: float) -> None:
    assert sampled_fps(clip(0, frames, 8, 8, fps, step)) == rate


def test_times_of_frame_groups() -> None:
    video = clip(0, 5, 8, 8, fps=8.0, step=4)
    assert group_seconds(video, 2) == [0.25, 1.25, 2.0]
    assert group_seconds(video, 3) == [0.5, 1.75]


@pytest.mark.torch
@pytest.mark.parametrize("cap", [False, True])
def test_sizes_of_clips_are_those_of_transformers(folders: dict[str, Path], cap: bool) -> None:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    vision = published(folders["qwen3_vl"]).vision
    size = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
    ours = ClipSettings.from_hf({"size": size, "cap_pixels_per_frame": cap})
    theirs = Qwen3VLVideoProcessor.__new__(Qwen3VLVideoProcessor)
    theirs.cap_pixels_per_frame = cap
    rng = np.random.default_rng(0)
    for frames, height, width in np.exp(rng.uniform([0.7, 2, 2], [5, 8, 8], (500, 3))).astype(int).tolist():
        if max(height, width) > 150 * min(height, width):
            continue
        rows, columns = ours.frame_size(frames, height, width, vision)
        patches = rows // 16 * (columns // 16) * -(-frames // 2)
        assert patches == theirs.get_num_of_video_patches(frames, height, width, {"size": size})


def test_text_goes_on_behind_the_longer_side(processor: Qwen2VLProcessor) -> None:
    item = processor.prepare_image(picture(0, 48, 24))
    groups, rows, columns = item.meta["grids"][0]
    assert (groups, item.tokens) == (1, rows * columns)
    prompt = processor.encode("a<|image_pad|>bc", [item])
    rope = prompt.rope_positions
    assert rope is not None
    assert rope[0].tolist() == [0, 0, 0]
    assert rope[1 : 1 + item.tokens, 0].tolist() == [1] * item.tokens
    assert rope[item.tokens].tolist() == [1, rows, columns]
    assert rope[-2:].tolist() == [[1 + columns] * 3, [2 + columns] * 3]
    assert len(prompt.token_ids) + prompt.rope_delta == 3 + columns
    assert processor.encode("abc").rope_delta == 0


def test_videos_keep_their_own_token(processor: Qwen2VLProcessor) -> None:
    media = [processor.prepare_video(clip(0, 4, 24, 24, 2.0, 1)), processor.prepare_image(picture(0, 24, 24))]
    prompt = processor.encode("<|video_pad|> and <|image_pad|>", media)
    ids = prompt.token_ids[prompt.mm_positions].tolist()
    video, image = (item.tokens for item in media)
    assert ids == [processor.config.video_token_id] * video + [processor.config.image_token_id] * image


@pytest.mark.parametrize("size", [(402, 2), (2, 402)])
def test_thin_media_are_refused(processor: Qwen2VLProcessor, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels is more than 200 times"):
        processor.prepare_image(Image.new("RGB", size))
    frames = np.zeros((4, size[1], size[0], 3), np.uint8)
    with pytest.raises(ValueError, match="more than 200 times"):
        processor.prepare_video(Video(frames, np.arange(4) / 2, 2.0))


def test_videos_without_content_are_refused(processor: Qwen2VLProcessor) -> None:
    with pytest.raises(ValueError, match="no content"):
        processor.prepare_video(Video(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0), 2.0))
    with pytest.raises(ValueError, match="uint8"):
        processor.prepare_video(Video(np.zeros((2, 8, 8, 3), np.float32), np.zeros(2), 2.0))


def test_a_single_frame(folders: dict[str, Path]) -> None:
    video = clip(0, 1, 24, 24, 2.0, 1)
    assert len(load(folders["qwen2_5_vl"]).prepare_video(video).units) == 1
    with pytest.raises(ValueError, match="at least 2 frames, this one has 1"):
        load(folders["qwen3_vl"]).prepare_video(video)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("qwen2_vl", {"vision_config": {"in_channels": 1}}, "in_channels is 1"),
        ("qwen2_vl", {"vision_config": {"num_heads": 5}}, "num_heads 5"),
        ("qwen2_vl", {"vision_config": {"hidden_size": 32}}, "tokens of width 32"),
        ("qwen2_5_vl", {"vision_config": {"window_size": 7}}, "window_size 7"),
        ("qwen2_5_vl", {"vision_config": {"fullatt_block_indexes": [3]}}, "fullatt_block_indexes is"),
        ("qwen2_5_vl", {"text_config": {"rope_parameters": {"mrope_section": [2, 2, 2]}}}, "mrope_section is"),
        ("qwen2_5_vl", {"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "yarn"),
        ("qwen3_vl", {"vision_config": {"num_position_embeddings": 10}}, "no square"),
        ("qwen3_vl", {"vision_config": {"deepstack_visual_indexes": [0, 9]}}, "deepstack_visual_indexes is"),
        ("qwen3_vl", {"vision_config": {"patch_size": [4, 4]}}, "patch_size is"),
        ("qwen3_vl", {"vision_config": None}, "no vision_config"),
    ],
)
def test_fields_that_cannot_be_honoured(
    folders: dict[str, Path], name: str, change: dict[str, Any], complaint: str
) -> None:
    config = read_hf_config(folders[name])
    for part, fields in change.items():
        config[part] = None if fields is None else config[part] | fields
    with pytest.raises(ValueError, match=complaint):
        family_for(config).read_config(config, None)


def test_settings_that_contradict_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    for path in folders["qwen2_5_vl"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "video_preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match="video processor's image_mean"):
        load(tmp_path)
    path.write_text(json.dumps(settings | {"patch_size": 5}))
    with pytest.raises(ValueError, match="video processor's patch_size is 5"):
        load(tmp_path)
    path.write_text(json.dumps(settings | {"size": {"shortest_edge": 64, "longest_edge": 10**6}}))
    with pytest.raises(ValueError, match="lower the video processor's"):
        load(tmp_path).prepare_video(clip(0, 2, 900, 900, 2.0, 1))
