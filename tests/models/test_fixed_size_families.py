"""Gemma 3, LLaVA and LLaVA-OneVision: published configs, pictures of all shapes, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor as HFProcessor

from epdjax.models import config_of, family_of, load_model
from epdjax.models.attention import dense_attention
from epdjax.models.families.gemma3.keys import GEMMA3_KEYS
from epdjax.models.families.gemma3.model import Gemma3Config
from epdjax.models.families.llava.model import LlavaConfig
from epdjax.models.families.llava_onevision.keys import LLAVA_ONEVISION_KEYS
from epdjax.models.families.llava_onevision.mix import frames_mix, tiles_mix
from epdjax.models.families.llava_onevision.model import LlavaOnevisionConfig
from epdjax.models.media import MediaContext
from epdjax.models.vit import VisionConfig, VisionTower
from tests.models.dense import assert_close, logits
from tests.models.families import gemma3, llava, llava_onevision
from tests.models.judge import picture, user, video

GRID = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def processor(module: ModuleType, folder: Path, variant: int = 0) -> Any:
    module.make(folder, **list(module.VARIANTS.values())[variant])
    return family_of(folder).processor(folder, config_of(folder))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---- configs -------------------------------------------------------------------------------------------------------


def test_published_gemma_config() -> None:
    vision = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16}
    vision |= {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "patch_size": 14}
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = Gemma3Config.from_hf({"mm_tokens_per_image": 256, "text_config": text, "vision_config": vision})
    assert (config.vision.grid, config.pool, config.unit_tokens(1), config.image_token_id) == (64, 4, 256, 262144)
    assert config.text.windows[:6] == (1024,) * 5 + (None,)
    assert (config.text.head_dim, config.text.num_heads, config.text.num_kv_heads) == (256, 8, 4)
    assert config.text.tie_embeddings
    assert (config.text.rope.theta, config.text.rope.factor) == (1e6, 8.0)


def test_rotary_embeddings_of_both_kinds_of_layers() -> None:
    """Whatever part of ``rope_parameters`` is left out is as transformers has it."""
    text = {"vocab_size": 304, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}
    config = Gemma3Config.from_hf({"text_config": text, "vision_config": {"image_size": 256, "patch_size": 16}})
    assert (config.text.rope.theta, config.text.rope.factor) == (1e6, 2.0)
    assert config.text.local_rope is not None
    assert (config.text.local_rope.theta, config.text.local_rope.factor) == (1e4, 1.0)


def test_published_llava_config() -> None:
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064}
    config = LlavaConfig.from_hf({"image_token_index": 32000, "text_config": text, "vision_feature_layer": -2})
    assert (config.text.hidden_size, config.text.num_layers, config.text.mlp_size) == (4096, 32, 11008)
    assert (config.vision.image_size, config.unit_tokens(1), config.feature_layers) == (336, 576, (-2,))
    assert config.vision.hidden_act == "quick_gelu"


def test_published_onevision_config() -> None:
    config = LlavaOnevisionConfig.from_hf({"text_config": {"model_type": "qwen2", "hidden_size": 896}})
    assert (config.vision.grid, config.unit_tokens(1), config.max_tiles) == (27, 730, 9)
    assert [list(point) for point in config.grid_pinpoints] == GRID


@pytest.mark.parametrize(
    ("module", "changes", "complaint"),
    [
        (gemma3, {"mm_tokens_per_image": 9}, "mm_tokens_per_image is 9"),
        (gemma3, {"text_config": {"use_bidirectional_attention": True}}, "use_bidirectional_attention"),
        (gemma3, {"vision_config": {"model_type": "clip_vision_model"}}, "siglip_vision_model"),
        (llava, {"vision_config": {"model_type": "pixtral"}}, "vision_config.model_type is 'pixtral'"),
        (llava, {"vision_feature_layer": [-2, 9]}, "vision_feature_layer"),
        (llava, {"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy is 'cls'"),
        (llava, {"text_config": {"model_type": "phi"}}, "text_config.model_type is 'phi'"),
        (llava_onevision, {"vision_feature_select_strategy": "default"}, "one feature for each patch"),
        (llava_onevision, {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio is 'anyres'"),
        (llava_onevision, {"image_grid_pinpoints": [[28, 30]]}, "multiples of vision_config.image_size 28"),
    ],
)
def test_config_is_refused(tmp_path: Path, module: ModuleType, changes: dict[str, Any], complaint: str) -> None:
    config: dict[str, Any] = module.hf_config()
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=complaint):
        config_of(tmp_path)


@pytest.mark.parametrize(
    ("module", "settings", "complaint"),
    [
        (gemma3, {"size": {"height": 30, "width": 28}}, "must agree with vision_config.image_size"),
        (llava, {"do_center_crop": False}, "must agree with vision_config.image_size"),
        (llava, {"image_processor_type": "ViTImageProcessor"}, "supported: CLIPImageProcessor"),
        (llava, {"do_normalize": False}, "do_normalize"),
        (llava_onevision, {"size": {"shortest_edge": 28}}, "the vision tower takes 28 x 28"),
        (llava_onevision, {"image_grid_pinpoints": [[28, 28]]}, "image_grid_pinpoints"),
    ],
)
def test_processor_settings_are_refused(
    tmp_path: Path, module: ModuleType, settings: dict[str, Any], complaint: str
) -> None:
    processor(module, tmp_path)
    edit(tmp_path / "preprocessor_config.json", **settings)
    with pytest.raises(ValueError, match=complaint):
        family_of(tmp_path).processor(tmp_path, config_of(tmp_path))


def test_token_ids_must_agree(tmp_path: Path) -> None:
    processor(llava, tmp_path)
    edit(tmp_path / "config.json", image_token_index=3)
    with pytest.raises(ValueError, match="image_token is 3, but the tokenizer gives '<image>'"):
        family_of(tmp_path).processor(tmp_path, config_of(tmp_path))


# ---- tensor names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_tower_names_of_all_layouts(prefix: str) -> None:
    name = f"vision_tower.{prefix}encoder.layers.0.mlp.fc1.weight"
    assert GEMMA3_KEYS.canonical(name) == GEMMA3_KEYS.canonical(f"model.{name}")
    assert GEMMA3_KEYS.canonical(name) == "vision_tower.encoder.layers.0.mlp.fc1.weight"
    assert LLAVA_ONEVISION_KEYS.canonical("model.image_newline") == "image_newline"


def test_pooling_head_is_left_alone(tmp_path: Path) -> None:
    llava_onevision.make(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"vision_tower.head.probe": np.zeros((1, 1, 32), np.float32)}, path)
    load_model(tmp_path)


# ---- Gemma 3 -------------------------------------------------------------------------------------------------------


def test_tokens_of_a_picture_see_each_other(tmp_path: Path) -> None:
    prompt = processor(gemma3, tmp_path).prompt(user("a", picture(1, 30, 30), "b", picture(2, 9, 40)))
    assert prompt.sees is not None
    expected = np.arange(len(prompt.token_ids))
    for first in prompt.mm_positions[::4]:
        expected[first : first + 4] = first + 3
    assert prompt.sees.tolist() == expected.tolist()
    assert len(prompt.mm_positions) == 8


def test_one_beginning_of_sequence(tmp_path: Path) -> None:
    made = processor(gemma3, tmp_path)
    bos = made.tokenizer.bos_token_id
    for prompt in (made.prompt(user("Hello")), made.encode("Hello")):
        assert prompt.token_ids.tolist().count(bos) == 1
        assert prompt.token_ids[0] == bos


@pytest.mark.parametrize(("size", "crops"), [((20, 20), 0), ((50, 30), 2), ((17, 90), 3), ((9, 9), 0)])
def test_pan_and_scan(tmp_path: Path, size: tuple[int, int], crops: int) -> None:
    made = processor(gemma3, tmp_path, variant=1)
    item = made.prepare_image(picture(1, *size))
    assert len(item.units) == 1 + crops
    assert made.expand(item, 0).count("<start_of_image>") == 1 + crops
    assert made.expand(item, 0).count("<image_soft_token>") == item.tokens == 25 * (1 + crops)


# ---- pictures of all shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (1, 300), (64, 3)])
def test_odd_pictures(shared: dict[ModuleType, Any], mode: str, size: tuple[int, int]) -> None:
    for made in shared.values():
        for context in (None, MediaContext(images=2)):
            item = made.prepare_image(Image.new(mode, size), context)
            assert all(unit.inputs["pixels"].shape == (28, 28, 3) for unit in item.units)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[ModuleType, Any]:
    return {module: processor(module, tmp_path_factory.mktemp("made")) for module in (gemma3, llava, llava_onevision)}


def test_endless_pictures_are_refused(shared: dict[ModuleType, Any]) -> None:
    with pytest.raises(ValueError, match="too long for its width"):
        shared[llava].prepare_image(Image.new("L", (1, 500_000)))
    with pytest.raises(ValueError, match="too long for its width"):
        shared[llava_onevision].prepare_image(Image.new("L", (1, 20_000)), MediaContext(images=2))
    for module in (gemma3, llava, llava_onevision):
        with pytest.raises(ValueError, match="no content"):
            shared[module].prepare_image(Image.new("L", (0, 5)))


# ---- LLaVA-OneVision -----------------------------------------------------------------------------------------------


def counter(num_image_tokens: int, max_tiles: int) -> HFProcessor:
    """The reference's counting of tokens, which needs none of the rest of it."""
    counts = HFProcessor.__new__(HFProcessor)
    counts.num_image_tokens, counts.vision_aspect_ratio = num_image_tokens, f"anyres_max_{max_tiles}"
    counts.image_processor = type("Settings", (), {"image_grid_pinpoints": GRID})()
    return counts


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(2, 12))
def test_as_many_tokens_as_the_reference_counts(width: int, height: int, max_tiles: int) -> None:
    from transformers.image_processing_utils import select_best_resolution

    best = select_best_resolution((height, width), GRID)
    grid = (best[0] // 384, best[1] // 384)
    mix = tiles_mix((height, width), grid, 27, max_tiles)
    assert len(mix.rows) == counter(729, max_tiles)._get_number_of_features(height, width, 384, 384)
    assert mix.rows.min() >= 0
    assert mix.rows.max() < 730 * (1 + grid[0] * grid[1])
    np.testing.assert_allclose(mix.weights.sum(1), 1, atol=1e-6)


def test_pooled_frames_take_a_quarter() -> None:
    mix = frames_mix(3, 27)
    assert mix.rows.shape == mix.weights.shape == (3 * 196 + 1, 4)
    assert mix.rows[-1].tolist() == [729] * 4  # the newline
    assert mix.rows[196].tolist() == (mix.rows[0] + 730).tolist()


def test_frames_are_spread_over_the_video(tmp_path: Path) -> None:
    made = processor(llava_onevision, tmp_path)
    assert made.sample_frames(320, 30.0).tolist() == list(range(0, 320, 10))
    assert made.sample_frames(3, 30.0).tolist() == [0, 1, 2]
    edit(tmp_path / "video_preprocessor_config.json", num_frames=2)
    assert family_of(tmp_path).processor(tmp_path, config_of(tmp_path)).sample_frames(9, 1.0).tolist() == [0, 4]


def test_only_a_lone_picture_is_tiled(tmp_path: Path) -> None:
    made = processor(llava_onevision, tmp_path)
    alone = made.prompt(user(picture(1, 50, 30))).media
    several = made.prompt(user(picture(1, 50, 30), picture(2, 9, 9))).media
    beside = made.prompt(user(picture(1, 50, 30), video(3, 2, 20, 20))).media
    assert [len(item.units) for item in alone] == [5]
    assert [len(item.units) for item in several] == [1, 1]
    assert [item.tokens for item in several] == [17, 17]
    assert [len(item.units) for item in beside] == [5, 2]


# ---- soft-capping ---------------------------------------------------------------------------------------------------


def test_soft_capping_where_configured(tmp_path: Path) -> None:
    """Of logits as ``Gemma3ForCausalLM`` has it; of scores as the config documents it, inside the softmax."""
    gemma3.make(tmp_path)
    said = gemma3.conversations()["one picture"]
    prompt = family_of(tmp_path).processor(tmp_path, config_of(tmp_path)).prompt(said)
    plain = logits(load_model(tmp_path), prompt)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "config.json").read_text())
    edit(tmp_path / "config.json", text_config=config["text_config"] | {"final_logit_softcapping": 2.0})
    capped = logits(load_model(tmp_path), prompt)  # type: ignore[arg-type]
    assert_close(capped, 2 * np.tanh(plain / 2), 1e-5)
    edit(tmp_path / "config.json", text_config=config["text_config"] | {"attn_logit_softcapping": 0.5})
    assert np.abs(logits(load_model(tmp_path), prompt) - plain).max() > 0.01  # type: ignore[arg-type]


def test_scores_are_capped_before_the_softmax() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 5, 2, 4)).astype(np.float32)
    scores = 3 * np.tanh(np.einsum("btnh,bsnh->bnts", q, k) * 0.7 / 3)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v)
    np.testing.assert_allclose(dense_attention(q, k, v, None, 0.7, 3.0), expected, atol=1e-5)


# ---- long units ----------------------------------------------------------------------------------------------------


def test_long_units_attend_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3's 4096 patches never meet in one matrix of scores; the numbers are the same."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"image_size": 66, "patch_size": 2}
    config = VisionConfig.from_hf_clip(sizes | {"model_type": "siglip_vision_model"})
    tower = VisionTower(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    pixels = np.random.default_rng(0).standard_normal((2, 66, 66, 3), np.float32)
    dense = tower(pixels)
    assert any(shape.count(33**2) > 1 for shape in _shapes(jax.make_jaxpr(tower)(pixels)))
    monkeypatch.setattr("epdjax.models.attention.DENSE_LIMIT", 1024)
    assert not any(shape.count(33**2) > 1 for shape in _shapes(jax.make_jaxpr(lambda x: tower(x))(pixels)))
    np.testing.assert_allclose(tower(pixels), dense, atol=1e-5)


def _shapes(closed: Any) -> Iterator[tuple[int, ...]]:
    """Of everything a program computes, loops included."""
    for equation in closed.jaxpr.eqns:
        yield from (value.aval.shape for value in equation.outvars)
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from _shapes(inner)
