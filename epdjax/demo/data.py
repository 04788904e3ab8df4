"""From scenes to training arrays: real processor, real chat layout, many questions behind one picture.

A sample is a prefix (the pictures' MM tokens) and a suffix of question/answer segments. Each segment sees the prefix
and itself and starts at the position right behind the prefix, so to the model every segment is a conversation of its
own that costs no second encoding of the picture. A share of the samples are true multi-turn conversations instead.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from epdjax.demo.guides import Guide, guides
from epdjax.demo.questions import KINDS, random_question, small_talk
from epdjax.demo.recipe import IMAGE_SIZE, MAX_TILES, TOKENS_PER_TILE, Stage
from epdjax.demo.scenes import COLOURS, SHAPES, SIZES, Scene, draw, random_scene
from epdjax.demo.tokenizer import END, IMAGE, IMAGE_END, IMAGE_START, START
from epdjax.models.processing.pictures import like_torchvision, resized

# Encode units of a sample -> tokens kept for its questions. Samples of fewer units are padded up to a bucket.
BUCKETS = {1: 96, 3: 128, 5: 144, 7: 160, 10: 176, 14: 192}
PREFIX_SLACK = 32  # template and system message around the pictures
ANSWER_SHARE = 0.45  # of the suffix tokens may be answers
CELLS = 4  # MM tokens along one side of a tile
CLASSES = len(COLOURS) * len(SHAPES)
CELL_FEATURES = CLASSES + len(SIZES)
GUIDES = 32  # lessons in looking per sample
WITHOUT_PICTURE = 1000  # segments from this number on do not see the prefix
# What the count head is taught at each picture's end: every (colour, shape, size), (colour, shape), colour, shape, all.
COUNT_FEATURES = CLASSES * len(SIZES) + CLASSES + len(COLOURS) + len(SHAPES) + 1
SYSTEM_MESSAGES = ("you are a helpful assistant.", "answer briefly.", "you see pictures of simple shapes.")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Arrays of one bucket, ``b`` samples of ``u`` units and ``t`` tokens, ``a`` of them answer tokens.

    Attributes:
        pixels: uint8 ``[b, u, height, width, 3]``.
        cells: bool ``[b, u, tokens_per_tile, CELL_FEATURES]``: what has its centre in each token's part of the picture.
        centres: float32 ``[b, u, tokens_per_tile, 2]``: where in the tile (across, down) that centre is, from -1 to 1.
        unit_mask: bool ``[b, u]``, False for padding.
        tokens, positions: int32 ``[b, t]``.
        segments: int32 ``[b, t]``: 0 the prefix, then one number per segment, -1 padding; see `WITHOUT_PICTURE`.
        answers: int32 ``[b, a]``: where the tokens are whose *next* token is part of an answer; 0 for padding.
        targets: int32 ``[b, a]``: those next tokens; -1 for padding.
        weights: float32 ``[b, a]``: of those tokens in the loss.
        asked: int32 ``[b, a]``: which question of the batch the token belongs to; -1 for padding and small talk.
        guide_at, guide_head: int32 ``[b, g]``: which token is taught to look, with which head; -1 for padding.
        guide_to: float32 ``[b, g, t]``: where to, as the attention weights it should have.
        ends: int32 ``[b, 2]``: where each picture's ``</img>`` is; -1 for none.
        counts: float32 ``[b, 2, COUNT_FEATURES]``: what is on each picture.
        kinds: for each question of the batch the index of its kind in ``KINDS``.
    """

    pixels: np.ndarray
    cells: np.ndarray
    centres: np.ndarray
    unit_mask: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    answers: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    asked: np.ndarray
    guide_at: np.ndarray
    guide_head: np.ndarray
    guide_to: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray


def image_processor() -> GotOcr2ImageProcessorPil:
    """The tiling of the demo model, as uint8 tiles (the model normalises)."""
    return like_torchvision(GotOcr2ImageProcessorPil)(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=MAX_TILES,
        do_rescale=False,
        do_normalize=False,
    )


def tiles_of(scene: Scene, processor: GotOcr2ImageProcessorPil) -> int:
    """Encode units of a scene's picture: tiles, and the thumbnail where there is more than one tile."""
    return int(processor.get_number_of_image_patches(scene.height, scene.width, {}))


def cell_targets(scene: Scene, grid: tuple[int, int], has_thumbnail: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which MM token of which unit holds the centre of what, and where: the `cells` and `centres` of a `Batch`."""
    columns, rows = grid
    units = columns * rows + int(has_thumbnail)
    cells = np.zeros((units, CELLS, CELLS, CELL_FEATURES), bool)
    centres = np.zeros((units, CELLS, CELLS, 2), np.float32)
    for thing in scene.things:
        across, down = scene.where(thing)
        kind = COLOURS.index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)
        features = [kind, CLASSES + SIZES.index(thing.size)]
        if has_thumbnail:
            cells[-1, int(down * CELLS), int(across * CELLS), features] = True
            centres[-1, int(down * CELLS), int(across * CELLS)] = 2 * across - 1, 2 * down - 1
        column, row = int(across * columns), int(down * rows)
        x, y = across * columns - column, down * rows - row
        cells[row * columns + column, int(y * CELLS), int(x * CELLS), features] = True
        centres[row * columns + column, int(y * CELLS), int(x * CELLS)] = 2 * x - 1, 2 * y - 1
    return cells.reshape(units, CELLS * CELLS, -1), centres.reshape(units, CELLS * CELLS, 2)


def count_targets(scene: Scene) -> np.ndarray:
    """How often everything countable is in the scene: float32 ``[COUNT_FEATURES]``."""
    full = np.zeros((len(COLOURS), len(SHAPES), len(SIZES)), np.float32)
    for thing in scene.things:
        full[COLOURS.index(thing.colour), SHAPES.index(thing.shape), SIZES.index(thing.size)] += 1
    parts = (full, full.sum(2), full.sum((1, 2)), full.sum((0, 2)), full.sum())
    return np.concatenate([np.ravel(part) for part in parts])


class Sampler:
    """Makes samples and batches, all from one seed.

    Args:
        tokenizer: of the demo model.
        seed: different seeds give independent scenes; training and evaluation must not share one.
        multi_turn: share of the samples that are one conversation of several turns.
        system: share of the samples that open with a system message.
        small_talk: share of the segments that are conversations without a picture.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        multi_turn: float = 0.1,
        system: float = 0.08,
        small_talk: float = 0.02,
    ):
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        self.multi_turn, self.system, self.small_talk = multi_turn, system, small_talk
        self.processor = image_processor()
        self._ids: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids, remembered (templates repeat)."""
        if text not in self._ids:
            if len(self._ids) > 50_000:
                self._ids.clear()
            self._ids[text] = self.tokenizer.encode(text)
        return self._ids[text]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character ranges of the tokens of `text`."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets)

    def scenes(self, units: int, stage: Stage) -> list[Scene]:
        """One scene or two whose pictures together fill the bucket `units`, and no smaller bucket."""
        smaller = max((b for b in BUCKETS if b < units), default=0)
        while True:
            two = units > 7 or (units > 1 and self.rng.random() < stage.pairs)
            first = random_scene(self.rng, max_things=stage.max_things)
            scenes = [first]
            if two:
                shared = [(t.colour, t.shape) for t in first.things]
                wanted = self.rng.sample(shared, min(len(shared), self.rng.choice((0, 1, 1, 2, 3))))
                scenes.append(random_scene(self.rng, max_things=stage.max_things, wanted=wanted))
            total = sum(tiles_of(scene, self.processor) for scene in scenes)
            if smaller < total <= units and all(scene.things for scene in scenes):
                self.rng.shuffle(scenes)
                return scenes

    def batch(self, units: int, size: int, stage: Stage) -> Batch:
        """`size` samples of one bucket."""
        suffix = BUCKETS[units]
        length = PREFIX_SLACK + units * TOKENS_PER_TILE + suffix
        width = int(suffix * ANSWER_SHARE)
        batch = Batch(
            pixels=np.zeros((size, units, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
            cells=np.zeros((size, units, CELLS * CELLS, CELL_FEATURES), bool),
            centres=np.zeros((size, units, CELLS * CELLS, 2), np.float32),
            unit_mask=np.zeros((size, units), bool),
            tokens=np.zeros((size, length), np.int32),
            positions=np.zeros((size, length), np.int32),
            segments=np.full((size, length), -1, np.int32),
            answers=np.zeros((size, width), np.int32),
            targets=np.full((size, width), -1, np.int32),
            weights=np.zeros((size, width), np.float32),
            asked=np.full((size, width), -1, np.int32),
            guide_at=np.full((size, GUIDES), -1, np.int32),
            guide_head=np.full((size, GUIDES), -1, np.int32),
            guide_to=np.zeros((size, GUIDES, length), np.float32),
            ends=np.full((size, 2), -1, np.int32),
            counts=np.zeros((size, 2, COUNT_FEATURES), np.float32),
            kinds=np.zeros(0, np.int32),
        )
        kinds: list[int] = []
        for row in range(size):
            if stage.encoder_only:
                self._thumbnails(batch, row, stage)
                continue
            scenes = self.scenes(units, stage)
            prefix = self._pictures(batch, row, scenes)
            self._questions(batch, row, scenes, prefix, kinds)
        return dataclasses.replace(batch, kinds=np.array(kinds, np.int32))

    def _tiles(self, scene: Scene) -> np.ndarray:
        """The uint8 tiles of a scene's picture ``[units, height, width, 3]``, thumbnail last."""
        tiles = np.stack(self.processor(images=[draw(scene, self.rng)], return_tensors="np")["pixel_values"])
        return tiles.transpose(0, 2, 3, 1)

    def _thumbnails(self, batch: Batch, row: int, stage: Stage) -> None:
        """Fill a row with unrelated whole pictures of all proportions, each squeezed into one tile."""
        for unit in range(batch.pixels.shape[1]):
            scene = random_scene(self.rng, max_things=stage.max_things)
            # What the processor does for a thumbnail, without the tiles.
            whole = np.asarray(draw(scene, self.rng))
            batch.pixels[row, unit] = resized(whole, IMAGE_SIZE, IMAGE_SIZE, Image.Resampling.BICUBIC)
            (batch.cells[row, unit],), (batch.centres[row, unit],) = cell_targets(scene, (1, 1), False)
            batch.unit_mask[row, unit] = True

    def _pictures(self, batch: Batch, row: int, scenes: Sequence[Scene]) -> int:
        """Fill in pixels, their targets and the prefix tokens; returns the prefix's length."""
        system = f"{START}system\n{self.rng.choice(SYSTEM_MESSAGES)}{END}\n" if self.rng.random() < self.system else ""
        tokens = [*self.ids(system), *self.ids(f"{START}user\n")] if system else list(self.ids(f"{START}user\n"))
        unit = 0
        for i, scene in enumerate(scenes):
            tiles = self._tiles(scene)
            n = len(tiles)
            batch.pixels[row, unit : unit + n] = tiles
            batch.unit_mask[row, unit : unit + n] = True
            grid = self._grid(scene, n)
            batch.cells[row, unit : unit + n], batch.centres[row, unit : unit + n] = cell_targets(scene, grid, n > 1)
            batch.counts[row, i] = count_targets(scene)
            tokens += self.ids(IMAGE_START) + self.ids(IMAGE) * (n * TOKENS_PER_TILE) + self.ids(IMAGE_END)
            batch.ends[row, i] = len(tokens) - 1
            tokens += self.ids("\n")
            unit += n
        batch.tokens[row, : len(tokens)] = tokens
        batch.positions[row, : len(tokens)] = np.arange(len(tokens))
        batch.segments[row, : len(tokens)] = 0
        return len(tokens)

    def _grid(self, scene: Scene, units: int) -> tuple[int, int]:
        """(columns, rows) of the tiles, by the processor's own rule: the closest aspect ratio."""
        tiles = max(1, units - 1)
        ratio = scene.width / scene.height
        grids = [(c, tiles // c) for c in range(1, tiles + 1) if tiles % c == 0]
        return min(grids, key=lambda grid: abs(ratio - grid[0] / grid[1]))

    def _questions(self, batch: Batch, row: int, scenes: Sequence[Scene], prefix: int, kinds: list[int]) -> None:
        """Fill the rest of the row with questions and answers."""
        writer = _Row(batch, row, prefix)
        multi_turn = self.rng.random() < self.multi_turn
        segment, misses = 0, 0
        while misses < 12:
            if not multi_turn and self.rng.random() < self.small_talk:
                said, answer = small_talk(self.rng)
                tokens = self.ids(f"{START}user\n") + self._said(said)
                segment += writer.add(tokens, self._answer(answer), WITHOUT_PICTURE + segment, 0, -1)
                continue
            question = random_question(self.rng, scenes)
            if question is None:
                misses += 1
                continue
            lead = self.ids(f"\n{START}user\n") if multi_turn and segment else []
            number, position = (0, writer.at) if multi_turn else (1 + segment, prefix)
            begin = writer.at + len(lead)
            tokens = lead + self._said(question.text)
            if writer.add(tokens, self._answer(question.answer), number, position, len(kinds)):
                segment += 1
                turn = writer.at - begin - len(self.offsets(question.text)) - len(self._answer(question.answer))
                offsets = self.offsets(question.text), turn, self.offsets(question.answer)
                for guide in guides(question, len(scenes), *offsets):
                    writer.guide(guide, begin, scenes)
                kinds.append(KINDS.index(question.kind))
            else:
                misses += 1

    def _said(self, text: str) -> list[int]:
        """The rest of a user's turn, and the opening of the assistant's."""
        return self.ids(text) + self.ids(f"{END}\n{START}assistant\n")

    def _answer(self, text: str) -> list[int]:
        return self.ids(text) + self.ids(END)


class _Row:
    """Writes segments into one row of a batch, one behind the other."""

    def __init__(self, batch: Batch, row: int, start: int):
        self.batch, self.row, self.at, self.answer_at, self.guides = batch, row, start, 0, 0

    def add(self, tokens: list[int], answer: list[int], segment: int, position: int, question: int) -> bool:
        """Append a segment whose first token has `position`; False when there is no room for it."""
        b, row, at = self.batch, self.row, self.at
        begin, end = at + len(tokens), at + len(tokens) + len(answer)
        slots = slice(self.answer_at, self.answer_at + len(answer))
        if end > b.tokens.shape[1] or slots.stop > b.answers.shape[1]:
            return False
        b.tokens[row, at:end] = tokens + answer
        b.positions[row, at:end] = np.arange(position, position + end - at)
        b.segments[row, at:end] = segment
        b.answers[row, slots] = np.arange(begin - 1, end - 1)
        b.targets[row, slots] = answer
        # A description is ten times as long as a "yes", and would otherwise be most of what is learnt.
        b.weights[row, slots] = len(answer) ** -0.5
        b.asked[row, slots] = question
        self.at, self.answer_at = end, slots.stop
        return True

    def guide(self, guide: Guide, begin: int, scenes: Sequence[Scene]) -> None:
        """Add a lesson for the segment whose question began at token `begin`; those beyond `GUIDES` are left out."""
        b, row = self.batch, self.row
        if self.guides == b.guide_at.shape[1]:
            return
        to = b.guide_to[row, self.guides]
        if guide.pictures:
            to[b.ends[row, list(guide.pictures)]] = 1
        elif guide.noun is not None:
            # The start of the picture takes one share too: all where there is no such thing, and the less, the more
            # things there are, so that the head can count.
            to[b.ends[row, 0] - _tokens_of_first_picture(b, row) - 1] = 1
            thumbnail = b.ends[row, 0] - TOKENS_PER_TILE
            for thing in scenes[0].things:
                if guide.noun.fits(thing):
                    across, down = scenes[0].where(thing)
                    to[thumbnail + int(down * CELLS) * CELLS + int(across * CELLS)] += 1
        to /= to.sum()
        b.guide_at[row, self.guides] = begin + guide.at
        b.guide_head[row, self.guides] = guide.head
        self.guides += 1


def _tokens_of_first_picture(batch: Batch, row: int) -> int:
    """MM tokens of a sample's only picture."""
    return int(batch.unit_mask[row].sum()) * TOKENS_PER_TILE
