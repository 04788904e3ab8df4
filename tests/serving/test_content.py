"""Keys of contents: equal for what is the same, different for everything that could change a result."""

import dataclasses
from typing import Any

import numpy as np

from epdjax.models.media import EncodeUnit, MediaItem, Mix, Prompt
from epdjax.serving.content import content_keys, unit_key

BLOCK = 4


def unit(value: int = 7, **more: Any) -> EncodeUnit:
    return EncodeUnit({"pixels": np.full((2, 3, 3), value, np.uint8)}, 1, 4, **more)


def prompt(*units: EncodeUnit, **more: Any) -> Prompt:
    """Four tokens, a picture of the units (four tokens each), six more tokens."""
    tokens = 4 * len(units)
    ids = np.concatenate([np.arange(4), np.full(tokens, 99), np.arange(6)]).astype(np.int32)
    media = (MediaItem("image", units, tokens),) if units else ()
    return Prompt(ids, np.arange(4, 4 + tokens, dtype=np.int32), media, **more)


def test_a_unit_is_all_that_its_encoder_sees() -> None:
    same = unit_key(unit())
    assert unit_key(unit()) == same
    grid = np.arange(4, dtype=np.int32)
    others = [
        unit(8),
        EncodeUnit({"pixels": np.full((3, 2, 3), 7, np.uint8)}, 1, 4),
        EncodeUnit({"pixels": np.full((2, 3, 3), 7, np.int8)}, 1, 4),
        EncodeUnit({"patches": np.full((2, 3, 3), 7, np.uint8)}, 1, 4),
        unit(picks=grid),
        EncodeUnit({"pixels": np.full((2, 3, 3), 7, np.uint8), "grid": grid}, 1, 4),
        EncodeUnit({"pixels": np.full((2, 3, 3), 7, np.uint8)}, 2, 4),
    ]
    assert len({same, *map(unit_key, others)}) == len(others) + 1


def test_blocks_chain() -> None:
    plain = content_keys(prompt(unit()), BLOCK).blocks
    assert len(plain) == 3, "full blocks only"
    other_end = prompt(unit())
    other_end.token_ids[10] += 1
    assert content_keys(other_end, BLOCK).blocks[:2] == plain[:2]
    assert content_keys(other_end, BLOCK).blocks[2] != plain[2]
    other_picture = content_keys(prompt(unit(8)), BLOCK).blocks
    assert other_picture[0] == plain[0], "nothing of the picture is in the first block"
    assert not set(other_picture[1:]) & set(plain), "everything behind the picture depends on it"
    other_start = prompt(unit())
    other_start.token_ids[0] += 1
    assert not set(content_keys(other_start, BLOCK).blocks) & set(plain)


def test_how_a_prompt_reads_its_media_matters() -> None:
    length = 14
    plain = prompt(unit())
    [item] = plain.media
    rows = np.stack([np.arange(4), np.arange(4)], axis=1).astype(np.int32)
    weights = np.full((4, 2), 0.5, np.float32)
    prompts = [
        plain,
        dataclasses.replace(plain, media=(dataclasses.replace(item, kind="video"),)),
        dataclasses.replace(plain, media=(dataclasses.replace(item, mix=Mix(rows, weights)),)),
        dataclasses.replace(plain, media=(dataclasses.replace(item, mix=Mix(rows, weights / 2)),)),
        dataclasses.replace(plain, rope_positions=np.zeros((length, 3), np.int32)),
        dataclasses.replace(plain, rope_positions=np.ones((length, 3), np.int32)),
        dataclasses.replace(plain, sees=np.full(length, 13, np.int32)),
    ]
    assert len({content_keys(p, BLOCK).blocks[1] for p in prompts}) == len(prompts)


def test_two_pictures_in_another_order() -> None:
    first, second = (content_keys(prompt(*units), BLOCK) for units in ((unit(1), unit(2)), (unit(2), unit(1))))
    assert first.units == second.units[::-1]
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]
