"""From pictures and messages to tiles and token ids."""

import concurrent.futures
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from epdjax.models import config_of
from epdjax.models.families.internvl.processor import InternVLProcessor
from epdjax.models.layers import normalise
from epdjax.models.media import MediaItem, Video
from tests.models.tiny import CHAT_TEMPLATE, make_tiny_checkpoint, write_processor_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> InternVLProcessor:
    return InternVLProcessor(folder, config_of(folder))


def with_template(folder: Path, tmp_path: Path, template: str | None) -> InternVLProcessor:
    write_processor_files(tmp_path, chat_template=template)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    return InternVLProcessor(tmp_path, config_of(tmp_path))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def across_then_down(image: Image.Image, width: int, height: int) -> np.ndarray:
    """A picture in another size, by two passes in an order of their own, whatever Pillow's is."""
    across = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((width, height), Image.Resampling.BICUBIC))


def tiles(item: MediaItem) -> np.ndarray:
    return np.stack([unit.inputs["pixels"] for unit in item.units])


def message(*parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400))
def test_media_shape_is_what_prepare_makes(processor: InternVLProcessor, width: int, height: int) -> None:
    item = processor.prepare_image(Image.new("RGB", (width, height), (9, 8, 7)))
    shape = processor.media_shape(width, height)
    assert tiles(item).shape == (shape.units, 28, 28, 3)
    assert item.tokens == shape.tokens == 4 * shape.units
    assert (tiles(item) == np.array([9, 8, 7])).all()  # no channel mixed up, whatever the shape


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 50), (50, 3), (3, 3), (1, 3), (4, 1)])
def test_odd_sizes(processor: InternVLProcessor, width: int, height: int) -> None:
    image = picture(width, height)
    item = processor.prepare_image(image)
    assert len(item.units) == processor.media_shape(width, height).units
    np.testing.assert_array_equal(tiles(item)[-1], across_then_down(image, 28, 28))


def test_tiles_are_rows_of_the_resized_picture(processor: InternVLProcessor) -> None:
    image = picture(90, 60)  # 3 columns, 2 rows
    cut = tiles(processor.prepare_image(image))
    assert len(cut) == 7
    whole = across_then_down(image, 84, 56)
    for i in range(6):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(cut[i], whole[row * 28 :, column * 28 :][:28, :28])


def test_device_normalisation_is_the_processors(processor: InternVLProcessor) -> None:
    for width, height in [(28, 28), (90, 60), (3, 50)]:
        image = picture(width, height)
        expected = np.stack(processor.image_processor(image, crop_to_patches=True)["pixel_values"])
        config = processor.config
        ours = jax.jit(normalise, static_argnums=(1, 2))(
            tiles(processor.prepare_image(image)), config.image_mean, config.image_std
        )
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(processor: InternVLProcessor, mode: str) -> None:
    assert tiles(processor.prepare_image(Image.new(mode, (40, 30)))).dtype == np.uint8


def test_transparency_is_white(processor: InternVLProcessor) -> None:
    assert (tiles(processor.prepare_image(Image.new("RGBA", (40, 30), (10, 20, 30, 0)))) == 255).all()


def test_what_is_not_a_picture(processor: InternVLProcessor) -> None:
    with pytest.raises(ValueError, match=r"PIL\.Image"):
        processor.prompt(message("see", np.zeros((3, 3, 3), np.uint8)))
    with pytest.raises(ValueError, match="0 x 5"):
        processor.media_shape(0, 5)


def test_prompt(processor: InternVLProcessor) -> None:
    one, two = picture(28, 28), picture(60, 28)
    prompt = processor.prompt(message("Look: ", one, two, "the end"))
    tokenizer = processor.tokenizer
    assert [len(item.units) for item in prompt.media] == [1, 3]
    text = "<|im_start|>user\nLook: <img>{}</img>\n<img>{}</img>\nthe end<|im_end|>\n<|im_start|>assistant\n"
    expected = text.format("<IMG_CONTEXT>" * 4, "<IMG_CONTEXT>" * 12)
    assert tokenizer.decode(prompt.token_ids) == expected
    assert prompt.token_ids.dtype == prompt.mm_positions.dtype == np.int32
    np.testing.assert_array_equal(prompt.mm_positions, np.flatnonzero(prompt.token_ids == processor.mm_token_id))
    assert len(prompt.mm_positions) == 16
    assert processor.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_plain_prompts(processor: InternVLProcessor) -> None:
    prompt = processor.encode("Hello there")
    assert processor.tokenizer.decode(prompt.token_ids) == "Hello there"
    assert len(prompt.mm_positions) == 0
    item = processor.prepare_image(picture(56, 28))
    assert len(processor.encode("a <IMG_CONTEXT> b", [item]).mm_positions) == 12
    items: list[MediaItem]
    for text, items in (("no picture", [item]), ("a <IMG_CONTEXT> too many", [])):
        with pytest.raises(ValueError, match="placeholders"):
            processor.encode(text, items)


def test_video(processor: InternVLProcessor) -> None:
    frames = np.random.default_rng(4).integers(0, 256, (2, 30, 90, 3), np.uint8)
    video = Video(frames, np.arange(2) / 2, 2.0)
    item = processor.prepare_video(video)
    for unit, frame in zip(item.units, frames, strict=True):
        np.testing.assert_array_equal(unit.inputs["pixels"], across_then_down(Image.fromarray(frame), 28, 28))
    prompt = processor.encode("A <IMG_CONTEXT> and <video>.", [processor.prepare_image(picture(28, 28)), item])
    tile = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    assert processor.tokenizer.decode(prompt.token_ids) == f"A {tile} and Frame1: {tile}\nFrame2: {tile}."
    with pytest.raises(ValueError, match="without frames"):
        processor.prepare_video(Video(frames[:0], np.zeros(0), 2.0))


def test_frames_of_a_video(processor: InternVLProcessor) -> None:
    assert processor.sample_frames(100, 30.0).tolist() == [6, 18, 31, 43, 56, 68, 81, 93]
    assert processor.sample_frames(9, 30.0).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert processor.sample_frames(3, 30.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (message("<IMG_CONTEXT>"), "text may not contain"),
        (message(picture(3, 3), "see <IMG_CONTEXT>"), "text may not contain"),
        ([{"role": "user", "content": "<IMG_CONTEXT>"}], "text may not contain"),
        (message("<IMG_", "CONTEXT>"), "1 '<IMG_CONTEXT>', '<video>' placeholders for 0 pictures"),
        ([{"role": "user", "content": [{"type": "image"}]}], "placeholders for 0 pictures"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "no audio input"),
        ([{"role": "user", "content": [{"type": "text"}]}], "string under 'text'"),
        ([{"role": "user", "content": 3}], "string or a list"),
        ([{"content": "no role"}], "role"),
        (["just text"], "role"),
    ],
)
def test_messages_that_are_refused(processor: InternVLProcessor, messages: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        processor.prompt(messages)


STRINGS_ONLY = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PRINTS_ANYTHING = STRINGS_ONLY.replace("+", "~")
LISTS_ONLY = CHAT_TEMPLATE.replace("message['content'] is string", "false")


@pytest.mark.parametrize("template", [STRINGS_ONLY, PRINTS_ANYTHING, LISTS_ONLY])
def test_templates_of_either_kind(processor: InternVLProcessor, folder: Path, tmp_path: Path, template: str) -> None:
    other = with_template(folder, tmp_path, template)
    for messages in (message("hi"), [{"role": "user", "content": "hi"}], message(picture(9, 9), "What is this?")):
        assert other.render(messages) == processor.render(messages)


def test_checkpoint_without_a_template(folder: Path, tmp_path: Path) -> None:
    other = with_template(folder, tmp_path, None)
    assert len(other.encode("hi").token_ids) > 0
    with pytest.raises(ValueError, match="no chat template"):
        other.prompt(message("hi"))


def test_a_template_that_refuses(folder: Path, tmp_path: Path) -> None:
    other = with_template(folder, tmp_path, "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}")
    with pytest.raises(ValueError, match="one only"):
        other.render(message("hi") * 2)


@pytest.mark.parametrize("missing", ["tokenizer.json", "preprocessor_config.json"])
def test_files_that_are_missing(folder: Path, tmp_path: Path, missing: str) -> None:
    write_processor_files(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match="cannot load"):
        InternVLProcessor(tmp_path, config_of(folder))


def test_settings_where_transformers_5_writes_them(folder: Path, tmp_path: Path) -> None:
    write_processor_files(tmp_path, max_patches=3)
    plain = tmp_path / "preprocessor_config.json"
    nested = {"image_seq_length": 4, "image_processor": json.loads(plain.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}}
    plain.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    other = InternVLProcessor(tmp_path, config_of(tmp_path))
    assert other.config.image_mean == (0.1, 0.2, 0.3)
    assert other.media_shape(300, 100).units == 4


def test_from_many_threads(processor: InternVLProcessor) -> None:
    messages = [message(picture(20 + 9 * i, 40, i), f"picture {i}") for i in range(12)]
    expected = [processor.prompt(m) for m in messages]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        prompts = list(pool.map(processor.prompt, messages * 4))
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(prompt.token_ids, expected[i % 12].token_ids)
        np.testing.assert_array_equal(tiles(prompt.media[0]), tiles(expected[i % 12].media[0]))


def test_other_threads_run_while_a_long_text_is_tokenised(processor: InternVLProcessor) -> None:
    text = "the cat in the hat " * 20_000
    moments: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.001):
            moments.append(time.monotonic())

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        began = time.monotonic()
        prompt = processor.encode(text)
        ended = time.monotonic()
    finally:
        over.set()
        ticking.join()
    backend = processor.tokenizer.backend_tokenizer
    assert prompt.token_ids.tolist() == backend.encode(text, add_special_tokens=False).ids
    during = [began, *(at for at in moments if began < at < ended), ended]
    assert max(later - at for at, later in itertools.pairwise(during)) < (ended - began) / 3


def test_the_longest_token(processor: InternVLProcessor) -> None:
    assert processor.longest_token_chars == len("<|endoftext|>")
