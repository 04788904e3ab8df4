"""Our InternVL against transformers' on small random checkpoints, numbers and tokens."""

import dataclasses
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from epdjax.models import export_hf, family_of, load_model
from epdjax.models.families.internvl.processor import InternVLProcessor
from epdjax.models.layers import normalise
from epdjax.models.lmm import LMM
from epdjax.models.media import Prompt
from epdjax.models.processing.pictures import like_torchvision
from tests.models.dense import assert_close, greedy, logits, mm_tokens
from tests.models.tiny import make_tiny_checkpoint, write_processor_files

pytestmark = pytest.mark.torch

NEW_TOKENS = 32
SWITCHES = [
    {"text": text, "tied": tied, "qk_norm": qk_norm, "norm": norm}
    for text, tied, qk_norm, norm in itertools.product(
        ("qwen2", "qwen3"), (True, False), (False, True), ("layer_norm", "rms_norm")
    )
]
OTHERS = [
    {"feature_layer": -2},
    {"final_norm": True},
    {"final_norm": True, "feature_layer": -2},
    {"feature_layer": 1},
    {"text": "qwen2", "num_kv_heads": 4, "attention_bias": True, "seed": 3},
    {"num_kv_heads": 1, "rope_factor": 4.0},
]


@dataclasses.dataclass
class Pair:
    """The same weights in both libraries; ours were read from what transformers wrote."""

    hf: Any
    ours: LMM
    processor: InternVLProcessor
    folder: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    @functools.cache
    def make(switches: tuple[tuple[str, Any], ...]) -> Pair:
        made = make_tiny_checkpoint(tmp_path_factory.mktemp("made"), **dict(switches))
        hf = from_pretrained(made)
        folder = tmp_path_factory.mktemp("saved")
        hf.save_pretrained(folder)
        write_processor_files(folder)
        ours = load_model(folder)
        return Pair(hf, ours, family_of(folder).processor(folder, ours.config), folder)

    return lambda switches: make(tuple(sorted(switches.items())))


def from_pretrained(folder: Path) -> Any:
    from transformers import InternVLForConditionalGeneration

    model, info = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    model.generation_config.eos_token_id = None
    return model.eval()


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def question(*pictures: Image.Image) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": p} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in the picture, then?"}]}]


CONVERSATIONS = {
    "text": question(),
    "one multi-tile picture": question(picture(1, 70, 30)),
    "two pictures": question(picture(2, 20, 60), picture(3, 28, 28)),
}


def hf_inputs(pair: Pair, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What transformers' own processor makes of the messages (its video processor aside, which needs torchvision)."""
    import torch
    from transformers import AutoTokenizer, GotOcr2ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(pair.folder)
    images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = {}
    if images:
        processor = like_torchvision(GotOcr2ImageProcessorPil).from_pretrained(pair.folder)
        out = processor(images, crop_to_patches=True)
        inputs["pixel_values"] = torch.tensor(np.stack(out["pixel_values"]))
        head, *rest = text.split("<IMG_CONTEXT>")
        expanded = [f"<img>{'<IMG_CONTEXT>' * 4 * n}</img>{t}" for n, t in zip(out["num_patches"], rest, strict=True)]
        text = head + "".join(expanded)
    return inputs | {"input_ids": torch.tensor([tokenizer(text).input_ids])}


def tiles(prompt: Prompt) -> np.ndarray:
    return np.stack([unit.inputs["pixels"] for item in prompt.media for unit in item.units])


def hf_features(hf: Any, pixel_values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(vision features that the projector is given, class token dropped; projected tokens)."""
    import torch

    with torch.no_grad():
        out = hf.model.vision_tower(pixel_values, output_hidden_states=True)
        layer = hf.config.vision_feature_layer
        features = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        projected = hf.get_image_features(pixel_values).pooler_output
    return features[:, 1:].numpy(), projected.numpy()


@pytest.mark.parametrize("switches", SWITCHES + OTHERS, ids=lambda s: "-".join(map(str, s.values())))
def test_same_numbers_and_tokens(pair, switches: dict[str, Any]) -> None:
    import torch

    both = pair(switches)
    for name, messages in CONVERSATIONS.items():
        inputs = hf_inputs(both, messages)
        prompt = both.processor.prompt(messages)
        assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist(), name
        if prompt.media:
            units = tiles(prompt)
            features, projected = hf_features(both.hf, inputs["pixel_values"])
            encoder = both.ours.encoder
            mean, std = (np.asarray(v, np.float32) for v in (both.ours.config.image_mean, both.ours.config.image_std))
            pixels = (units.astype(np.float32) / 255 - mean) / std
            assert_close(encoder.tower(pixels, both.ours.config.feature_layer)[:, 1:], features)
            assert_close(mm_tokens(both.ours, prompt), projected.reshape(-1, projected.shape[-1]))
        with torch.no_grad():
            assert_close(logits(both.ours, prompt), both.hf(**inputs).logits[0])
            answer = both.hf.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        expected = answer[0, inputs["input_ids"].shape[1] :].tolist()
        assert greedy(both.ours, prompt, NEW_TOKENS) == expected, name


def test_answers_depend_on_the_picture(pair) -> None:
    both = pair({})
    prompts = [both.processor.prompt(question(picture(seed, 70, 30))) for seed in range(2)]
    assert greedy(both.ours, prompts[0], 8) != greedy(both.ours, prompts[1], 8)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_that_transformers_wrote(pair, tmp_path: Path, tied: bool) -> None:
    both = pair({"tied": tied})
    both.hf.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, _values(load_model(tmp_path)), _values(both.ours))


def test_bfloat16_checkpoint(pair, tmp_path: Path) -> None:
    import torch
    from transformers import InternVLForConditionalGeneration

    half = InternVLForConditionalGeneration.from_pretrained(pair({}).folder, dtype=torch.bfloat16).eval()
    half.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert {str(x.dtype) for x in jax.tree.leaves(_values(ours))} == {"bfloat16"}
    whole = load_model(tmp_path, jnp.float32)  # bfloat16 values are exact in float32
    prompt = Prompt(np.arange(10, dtype=np.int32), np.zeros(0, np.int32), ())
    with torch.no_grad():
        theirs = half.float()(input_ids=torch.tensor(prompt.token_ids[None])).logits[0]
    assert_close(logits(whole, prompt), theirs)
    assert_close(logits(ours, prompt), theirs, 0.05)


@pytest.mark.parametrize("limit", [10**9, 50_000])
def test_export_reads_back_in_transformers(pair, tmp_path: Path, limit: int) -> None:
    import torch

    both = pair({"text": "qwen2", "tied": False})
    export_hf(both.ours, json.loads((both.folder / "config.json").read_text()), tmp_path, max_shard_bytes=limit)
    assert (limit == 10**9) == (tmp_path / "model.safetensors").is_file()
    inputs = hf_inputs(both, CONVERSATIONS["two pictures"])
    with torch.no_grad():
        again = from_pretrained(tmp_path)(**inputs).logits
        np.testing.assert_array_equal(again.numpy(), both.hf(**inputs).logits.numpy())


def test_prompt_and_pixels_are_those_of_the_hf_processor(pair) -> None:
    """The HF processor itself, put together without the video processor that would need torchvision."""
    from transformers.models.internvl.processing_internvl import InternVLProcessor as HFProcessor

    both = pair({})
    ours = both.processor
    theirs = HFProcessor.__new__(HFProcessor)
    theirs.tokenizer, theirs.image_processor, theirs.image_seq_length = ours.tokenizer, ours.image_processor, 4
    theirs.image_token, theirs.image_token_id, theirs.video_token = ours.mm_token, ours.mm_token_id, "<video>"
    theirs.start_image_token, theirs.end_image_token = "<img>", "</img>"
    theirs.multimodal_pattern = re.compile(f"(?P<image>{ours.mm_token})|(?P<video><video>)")
    pictures = [picture(2, 20, 60), picture(3, 28, 28), picture(4, 90, 31)]
    messages = question(*pictures)
    prompt = ours.prompt(messages)
    out = theirs(images=pictures, text=ours.render(messages))
    assert prompt.token_ids.tolist() == out["input_ids"][0]
    units = tiles(prompt)
    pixels = jax.jit(normalise, static_argnums=(1, 2))(units, ours.config.image_mean, ours.config.image_std)
    np.testing.assert_allclose(pixels.transpose(0, 3, 1, 2), np.stack(out["pixel_values"]), atol=1e-5, rtol=0)


def _values(model: LMM) -> Any:
    return nnx.split(model)[1]
