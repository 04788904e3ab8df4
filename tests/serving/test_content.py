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


def with_picture_at(at: int, sees: bool = False, rope: bool = False) -> Prompt:
    """16 tokens, among them a picture of one unit at `at`, laid out as Gemma 3 or Qwen-VL lay one out."""
    ids = np.arange(16, dtype=np.int32)
    media, where = (), np.zeros(0, np.int32)
    seen = counted = np.arange(16, dtype=np.int32)
    positions = np.repeat(counted[:, None], 3, axis=1)
    if at < 16:
        where = np.arange(at, at + 4, dtype=np.int32)
        ids[where], media = 99, (MediaItem("image", (unit(),), 4),)
        seen = np.where(np.isin(counted, where), at + 3, counted).astype(np.int32)
        positions[where] = at + np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
        positions[at + 4 :] -= 2
    return Prompt(
        ids, where, media, rope_positions=positions if rope else None, sees=seen if sees and len(media) else None
    )


def test_text_before_a_picture_has_the_keys_of_text_alone() -> None:
    """All full blocks before the picture, however a family lays pictures out; and none from where it begins."""
    for more in ({}, {"sees": True}, {"rope": True}):
        alone = content_keys(with_picture_at(16, **more), BLOCK).blocks
        assert alone == content_keys(with_picture_at(16), BLOCK).blocks
        for at, common in ((4, 1), (8, 2), (7, 1), (9, 2)):
            text = with_picture_at(16, **more)
            text.token_ids[at : at + 4] = 99  # so that the tokens do not tell them apart
            blocks = content_keys(with_picture_at(at, **more), BLOCK).blocks
            same = [one == other for one, other in zip(blocks, content_keys(text, BLOCK).blocks, strict=True)]
            assert same == [True] * common + [False] * (4 - common), (more, at)


def test_what_a_span_sees_counts_in_every_block_of_it() -> None:
    """The same picture's tokens, seen in both directions or one by one, make other KV from the block they begin in."""
    both, single = (content_keys(with_picture_at(6, sees=sees), BLOCK).blocks for sees in (True, False))
    assert [one == other for one, other in zip(both, single)] == [True, False, False, False]
