"""Samples are laid out as serving would lay them out."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from epdjax.demo.data import (
    BUCKETS,
    WITHOUT_PICTURE,
    Batch,
    Sampler,
    cell_targets,
    count_targets,
    image_processor,
    tiles_of,
)
from epdjax.demo.loader import held_out, order
from epdjax.demo.objective import segment_mask
from epdjax.demo.recipe import CURRICULUM, MAX_TILES, TOKENS_PER_TILE, TrainConfig
from epdjax.demo.scenes import draw, random_scene
from epdjax.demo.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts=1000).save_pretrained(str(path))
    return path


def batch_of(folder: Path, units: int, seed: int = 0, **sampling: float) -> Batch:
    return Sampler(load_tokenizer(folder), seed, **sampling).batch(units, 3, CURRICULUM[-1])


def test_the_processor_makes_as_many_tiles_as_it_says() -> None:
    rng, processor = random.Random(0), image_processor()
    for _ in range(40):
        scene = random_scene(rng)
        tiles = processor(images=[draw(scene, rng)], return_tensors="np")["pixel_values"]
        assert len(tiles) == tiles_of(scene, processor) <= MAX_TILES + 1
        assert tiles[0].dtype == np.uint8


@pytest.mark.parametrize("units", BUCKETS)
def test_each_placeholder_has_its_mm_token(folder: Path, units: int) -> None:
    batch = batch_of(folder, units)
    image = load_tokenizer(folder).context_image_token_id
    placeholders = ((batch.tokens == image) & (batch.segments >= 0)).sum(1)
    assert np.array_equal(placeholders, batch.unit_mask.sum(1) * TOKENS_PER_TILE)
    assert batch.pixels[~batch.unit_mask].max(initial=0) == 0


def test_each_segment_reads_as_a_conversation_of_its_own(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    batch = batch_of(folder, 1, multi_turn=0.0, system=0.0, small_talk=0.0)
    tokens, segments, positions = batch.tokens[0], batch.segments[0], batch.positions[0]
    prefix = int((segments == 0).sum())
    assert segments.max() > 3
    for segment in range(1, segments.max() + 1):
        assert positions[segments == segment][0] == prefix
        text = tokenizer.decode(tokens[(segments == 0) | (segments == segment)])
        question = text.split("</img>\n")[1].split("<|im_end|>")[0]
        answer = text.split("assistant\n")[1].removesuffix("<|im_end|>")
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        expanded = prompt.replace("<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * TOKENS_PER_TILE}</img>")
        assert expanded + answer + "<|im_end|>" == text


def test_small_talk_sees_no_picture(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    batch = batch_of(folder, 1, multi_turn=0.0, small_talk=0.5)
    talk = batch.segments[0] >= WITHOUT_PICTURE
    assert talk.any()
    assert tokenizer.decode(batch.tokens[0][talk]).startswith("<|im_start|>user\n")
    assert (batch.positions[0][talk] == 0).sum() == len(np.unique(batch.segments[0][talk]))
    mask = np.asarray(segment_mask(batch.segments))[0]
    assert not mask[talk][:, batch.segments[0] == 0].any()


def test_the_loss_looks_at_answers_only(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    batch = batch_of(folder, 3, multi_turn=0.0)
    known = batch.targets[0] >= 0
    following = batch.tokens[0][batch.answers[0][known] + 1]
    assert np.array_equal(following, batch.targets[0][known])
    assert (following == tokenizer.eos_token_id).sum() == len(np.unique(batch.segments[0][batch.answers[0][known]]))


def test_the_targets_of_the_helper_heads_count_every_thing() -> None:
    rng = random.Random(3)
    for grid in ((1, 1), (3, 2)):
        scene = random_scene(rng, grid)
        cells, centres = cell_targets(scene, grid, grid != (1, 1))
        assert cells.shape == (1 if grid == (1, 1) else 7, TOKENS_PER_TILE, 20)
        assert centres.shape == (*cells.shape[:2], 2)
        assert count_targets(scene)[-1] == len(scene.things)
        assert cells[-1, :, :18].sum() <= len(scene.things)


def test_batches_depend_on_the_seed_only_and_held_out_ones_differ(folder: Path) -> None:
    first, again, other = batch_of(folder, 1, 7), batch_of(folder, 1, 7), batch_of(folder, 1, 8)
    for field in dataclasses.fields(Batch):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.pixels, other.pixels)
    config = TrainConfig()
    trained = {order(config, step).seed for step in range(0, config.steps, 100)}
    assert trained.isdisjoint(wanted.seed for wanted in held_out(config))
