"""InternVL2 in its authors' layout against outputs of its authors' code (see ``tests/goldens/README.md``)."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from epdjax.models import config_of, export_hf, family_of, load_model
from epdjax.models.families.internvl_chat.model import CONVERSATIONS, InternVLChatConfig
from epdjax.models.families.internvl_chat.processor import InternVLChatProcessor
from epdjax.models.layers import normalise
from epdjax.models.media import MediaItem, Prompt, Video
from tests.models import dense
from tests.models.authors_outputs import check_answer, check_export
from tests.models.families import internvl_chat as tiny
from tests.models.tiny import random_checkpoint

GOLDENS = Path(__file__).parent.parent / "goldens" / "internvl_chat"
SIZES = ("8b", "26b", "1b")
TILING = json.loads((GOLDENS / "tiling.json").read_text())
DOWN_FIRST = (57, 117)  # a golden picture that was resized down first, by Pillow 13; the processor goes across first
PROMPTS = json.loads((GOLDENS / "prompts.json").read_text())


@dataclasses.dataclass
class Golden:
    """A golden model as we load it, and what its authors' code makes of its inputs."""

    folder: Path
    model: Any
    processor: InternVLChatProcessor
    expected: dict[str, np.ndarray]

    @property
    def items(self) -> tuple[MediaItem, ...]:
        return tuple(self._item(Image.fromarray(self.expected[f"image_{i}"])) for i in range(2))

    def _item(self, picture: Image.Image) -> MediaItem:
        if picture.size != DOWN_FIRST:
            return self.processor.prepare_image(picture)
        turned = self.processor.prepare_image(picture.transpose(Image.Transpose.TRANSPOSE))
        pixels = (np.ascontiguousarray(unit.inputs["pixels"].swapaxes(0, 1)) for unit in turned.units)
        units = tuple(dataclasses.replace(u, inputs={"pixels": p}) for u, p in zip(turned.units, pixels, strict=True))
        return dataclasses.replace(turned, units=units)

    @property
    def prompt(self) -> Prompt:
        e = self.expected
        return Prompt(e["input_ids"].astype(np.int32), e["image_token_positions"].astype(np.int32), self.items)


@pytest.fixture(scope="module", params=SIZES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp(request.param)
    for file in (GOLDENS / request.param).iterdir():
        shutil.copyfile(file, folder / file.name)
    tiny.write_tokenizer(folder, bos=request.param != "1b")  # the goldens have none
    family = family_of(folder)
    model = load_model(folder)
    return Golden(folder, model, family.processor(folder, model.config), dict(np.load(folder / "io.npz")))


def test_tiles(golden: Golden) -> None:
    assert [len(item.units) for item in golden.items] == golden.expected["num_patches_list"].tolist()


def test_encoder(golden: Golden) -> None:
    c, encoder = golden.model.config, golden.model.encoder
    tiles = np.stack([unit.inputs["pixels"] for item in golden.items for unit in item.units])
    features = encoder.tower(normalise(tiles, c.image_mean, c.image_std), c.feature_layer)
    np.testing.assert_allclose(features, golden.expected["vit_last_hidden_state"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(encoder({"pixels": tiles}), golden.expected["image_embeds"], rtol=0, atol=2e-5)


def test_logits(golden: Golden) -> None:
    logits = dense.logits(golden.model, golden.prompt)
    np.testing.assert_allclose(logits, golden.expected["logits"], rtol=0, atol=5e-5)


def test_greedy(golden: Golden) -> None:
    e = golden.expected
    check_answer(golden.model, golden.prompt, e["greedy_ids"], e["greedy_logits"], atol=5e-5)


def test_export_writes_the_same_tensors(golden: Golden, tmp_path: Path) -> None:
    check_export(golden.model, golden.folder, tmp_path)


# ---- processing -----------------------------------------------------------------------------------------------------


def processor(folder: Path, **changes: Any) -> InternVLChatProcessor:
    """Of a checkpoint with no weights; sizes as they really are unless `changes` say otherwise."""
    hf_config = json.loads((GOLDENS / "8b" / "config.json").read_text()) | {"force_image_size": 448} | changes
    hf_config["vision_config"]["image_size"] = hf_config["force_image_size"]
    (folder / "config.json").write_text(json.dumps(hf_config))
    tiny.write_tokenizer(folder, bos=True)
    return InternVLChatProcessor(folder, config_of(folder))


@pytest.mark.parametrize("most", [12, 6])
def test_tiling_of_every_size(tmp_path: Path, most: int) -> None:
    made = processor(tmp_path, max_dynamic_patch=most)
    for case in TILING["cases"]:
        shape, expected = made.media_shape(case["width"], case["height"]), case[f"max{most}"]
        assert (shape.units, shape.tokens) == (expected["tiles"], expected["image_tokens"]), case


def test_pixels(tmp_path: Path) -> None:
    pixels = np.load(GOLDENS / "pixels.npz")
    made = processor(tmp_path, force_image_size=112)
    for name in "abc":
        item = made.prepare_image(Image.fromarray(pixels[f"image_{name}"]))
        tiles = np.stack([unit.inputs["pixels"] for unit in item.units])
        np.testing.assert_array_equal(tiles, pixels[f"{name}_112"])
    (unit,) = processor(tmp_path).prepare_image(Image.fromarray(pixels["image_a"])).units
    assert hashlib.sha256(unit.inputs["pixels"]).hexdigest() == pixels["a_448_sha256"]


def test_no_thumbnail_and_no_tiling(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100))
    assert len(processor(tmp_path).prepare_image(wide).units) == 4
    assert len(processor(tmp_path, use_thumbnail=False).prepare_image(wide).units) == 3
    assert len(processor(tmp_path, dynamic_image_size=False).prepare_image(wide).units) == 1


@pytest.mark.parametrize("template", ["internlm2-chat", "Hermes-2"])
def test_conversations(tmp_path: Path, template: str) -> None:
    made = processor(tmp_path, template=template)
    picture = {7: Image.new("RGB", (60, 40)), 1: Image.new("RGB", (40, 40))}
    for name, case in PROMPTS["templates"][template]["examples"].items():
        turns = [(q, a) for q, a in case.get("history", [])] + [(case["question"], None)]
        tiles = iter(case["tiles_per_image"])
        messages: list[dict[str, Any]] = []
        for index, (question, answer) in enumerate(turns):
            pieces = question.split("<image>")
            if len(pieces) == 1 and index == 0:
                pieces = ["", f"\n{question}"]
            content: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
            for piece in pieces[1:]:
                content += [
                    {"type": "image", "image": picture[next(tiles)]},
                    {"type": "text", "text": piece.removeprefix("\n")},
                ]
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        text = case["prompt"]
        for count in (1792, 256):
            text = text.replace(f"{{<IMG_CONTEXT> x {count}}}", "<IMG_CONTEXT>" * count)
        expected = made.tokenizer(text).input_ids
        assert expected[0] == made.tokenizer.bos_token_id
        assert made.prompt(messages).token_ids.tolist() == expected, name


def test_other_conversations(tmp_path: Path) -> None:
    made = processor(tmp_path, template="internvl2_5")
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Hi."}
    text = made.render([system, user])
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")
    assert made.render([user], add_generation_prompt=False) == (
        f"<|im_start|>system\n{CONVERSATIONS['internvl2_5'].system}<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    )
    assert made.tokenizer.convert_tokens_to_ids("<|im_end|>") in made.eos_token_ids
    with pytest.raises(ValueError, match="not tool"):
        made.render([{"role": "tool", "content": "x"}])


def test_video(tmp_path: Path) -> None:
    made = processor(tmp_path, force_image_size=56)
    frames = np.random.default_rng(0).integers(0, 256, (3, 30, 90, 3), np.uint8)
    video = Video(frames, np.arange(3) / 2, 2.0)
    parts = [{"type": "video", "video": video}, {"type": "text", "text": "What happens?"}]
    prompt = made.prompt([{"role": "user", "content": parts}])
    text = made.tokenizer.decode(prompt.token_ids)
    picture = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    assert f"user\nFrame1: {picture}\nFrame2: {picture}\nFrame3: {picture}\nWhat happens?<|im_end|>" in text
    for unit, frame in zip(prompt.media[0].units, frames, strict=True):
        across = Image.fromarray(frame).resize((56, 30), Image.Resampling.BICUBIC)  # first, whatever Pillow does
        np.testing.assert_array_equal(unit.inputs["pixels"], across.resize((56, 56), Image.Resampling.BICUBIC))
    assert made.sample_frames(100, 30.0).tolist() == [6, 18, 31, 43, 56, 68, 80, 93]
    assert made.sample_frames(5, 30.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ps_version": "v1"}, "ps_version is 'v1'"),
        ({"template": "phi3-chat"}, "template is 'phi3-chat'"),
        ({"force_image_size": 112}, "force_image_size is 112"),
        ({"llm_config": {"model_type": "phi3"}}, "llm_config.model_type is 'phi3'"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch 0"),
    ],
)
def test_refusals(changes: dict[str, Any], complaint: str) -> None:
    hf_config = json.loads((GOLDENS / "8b" / "config.json").read_text())
    with pytest.raises(ValueError, match=complaint):
        InternVLChatConfig.from_hf(hf_config | changes)


def test_sentencepiece_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    hf_config = (GOLDENS / "8b" / "config.json").read_text()
    (tmp_path / "config.json").write_text(hf_config)
    with pytest.raises(ValueError, match=r"tokenizer\.model and no tokenizer\.json"):
        InternVLChatProcessor(tmp_path, config_of(tmp_path))


@pytest.mark.parametrize("kind", ["internlm2", "llama"])
def test_biases_and_odd_groups_survive(tmp_path: Path, kind: str) -> None:
    hf_config = tiny.hf_config(kind=kind, num_heads=6, num_kv_heads=3, bias=True)
    random_checkpoint(tmp_path, hf_config)
    tensors = load_file(tmp_path / "model.safetensors")
    export_hf(load_model(tmp_path), hf_config, tmp_path / "again")
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_array_equal(tensors[name], tensor)
