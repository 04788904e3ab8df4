"""Scenes of plain shapes: what is in them, how they come about, how they look.

A `Scene` is pure data and says all there is to know; `draw` makes its picture. Every class of thing is told apart by
wide margins (sizes never in between, nothing overlapping), so that each question about a scene has one right answer.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
MAX_THINGS = 4

# Each colour is a blend of its anchors; the first is what PIL and CSS call by that name, so users' drawings work too.
ANCHORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (215, 35, 40)),
    "green": ((0, 128, 0), (40, 175, 70)),
    "blue": ((0, 0, 255), (45, 95, 225)),
    "yellow": ((255, 255, 0), (245, 222, 50)),
    "purple": ((128, 0, 128), (150, 65, 190)),
    "orange": ((255, 165, 0), (245, 135, 30)),
}
BACKGROUNDS = (
    (255, 255, 255),
    (245, 245, 245),
    (222, 222, 222),
    (240, 232, 220),
    (222, 234, 242),
    (0, 0, 0),
    (30, 30, 34),
    (52, 52, 52),
)
# Half the width of a thing, as a share of the square root of the picture's area.
RADII = {"small": (0.072, 0.088), "large": (0.135, 0.16)}
GAP = 0.035  # empty space between things, as the same share
EXTENT = 1.1  # no shape reaches further than this many radii from its centre, along either axis

# Grids of tiles (columns, rows) that pictures are made for, and how often; the last ones are long and rare.
GRIDS: tuple[tuple[tuple[int, int], float], ...] = (
    ((1, 1), 3.0),
    ((2, 1), 1.0),
    ((1, 2), 1.0),
    ((2, 2), 1.2),
    ((3, 2), 0.9),
    ((2, 3), 0.9),
    ((3, 1), 0.5),
    ((1, 3), 0.5),
    ((4, 1), 0.12),
    ((1, 4), 0.12),
    ((5, 1), 0.06),
    ((1, 5), 0.06),
)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape in a picture. `x`, `y` are its centre and `radius` half its width, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture's content: its size in pixels, its background, and the things on it."""

    width: int
    height: int
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    def where(self, thing: Thing) -> tuple[float, float]:
        """Centre of a thing as shares of the picture's width and height."""
        return thing.x / self.width, thing.y / self.height


def random_size(rng: random.Random, grid: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of a picture that the processor cuts into about `grid` (columns, rows) tiles."""
    columns, rows = grid
    ratio = columns / rows * math.exp(rng.uniform(-0.13, 0.13))
    # A square picture becomes one tile up to about 158 pixels a side, four tiles from there on.
    side = rng.uniform(80, 158) if grid == (1, 1) else rng.uniform(160 if grid == (2, 2) else 105, 380)
    return max(48, round(side * math.sqrt(ratio))), max(48, round(side / math.sqrt(ratio)))


def random_scene(
    rng: random.Random,
    grid: tuple[int, int] | None = None,
    max_things: int = MAX_THINGS,
    wanted: Sequence[tuple[str, str]] = (),
) -> Scene:
    """A scene of 1 to `max_things` things.

    Args:
        rng: where all chance comes from.
        grid: tiles (columns, rows) to make the picture for; default a random one of `GRIDS`.
        max_things: upper bound on the things; never more than `MAX_THINGS`.
        wanted: (colour, shape) pairs that are placed first, room permitting.
    """
    if grid is None:
        grid = rng.choices([g for g, _ in GRIDS], [w for _, w in GRIDS])[0]
    width, height = random_size(rng, grid)
    # Few colours and shapes in one scene, so that things of one kind repeat and there is something to count.
    colours = rng.sample(COLOURS, rng.randint(1, 4))
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    kinds = list(wanted)
    kinds += [(rng.choice(colours), rng.choice(shapes)) for _ in range(rng.randint(1, max_things) - len(kinds))]
    things: list[Thing] = []
    for colour, shape in kinds[:max_things]:
        thing = _place(rng, width, height, colour, shape, things)
        if thing is not None:
            things.append(thing)
    return Scene(width, height, rng.choice(BACKGROUNDS), tuple(things))


def _place(
    rng: random.Random, width: int, height: int, colour: str, shape: str, others: Sequence[Thing]
) -> Thing | None:
    """A new thing that keeps its distance from `others`; None when forty tries found no room."""
    unit = math.sqrt(width * height)
    for attempt in range(40):
        size = rng.choice(SIZES) if attempt < 10 else "small"
        radius = unit * rng.uniform(*RADII[size])
        reach = radius * EXTENT + 0.01 * unit
        if 2 * reach >= min(width, height):
            continue
        x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        if all(max(abs(x - o.x), abs(y - o.y)) > EXTENT * (radius + o.radius) + GAP * unit for o in others):
            return Thing(shape, colour, size, x, y, radius)
    return None


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene's picture (RGB). `rng` decides the exact shades and whether edges are smooth."""
    factor = rng.choice((1, 2))
    picture = Image.new("RGB", (scene.width * factor, scene.height * factor), scene.background)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        x, y, r = thing.x * factor, thing.y * factor, thing.radius * factor
        fill = _shade(rng, thing.colour)
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            half = 0.9 * r
            pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        else:
            reach = EXTENT * r
            pen.polygon(((x, y - reach), (x - reach, y + 0.9 * r), (x + reach, y + 0.9 * r)), fill=fill)
    if factor > 1:
        picture = picture.resize((scene.width, scene.height), Image.Resampling.BOX)
    return picture


def _shade(rng: random.Random, colour: str) -> tuple[int, int, int]:
    """A random shade between the anchors of a colour, a few levels off."""
    (r0, g0, b0), (r1, g1, b1) = ANCHORS[colour]
    t = rng.random()

    def channel(a: int, b: int) -> int:
        return min(255, max(0, round(a + t * (b - a)) + rng.randint(-8, 8)))

    return channel(r0, r1), channel(g0, g1), channel(b0, b1)
