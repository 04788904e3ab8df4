"""Scenes keep the promises that make their questions unambiguous."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from epdjax.demo.data import image_processor, tiles_of
from epdjax.demo.scenes import EXTENT, GRIDS, RADII, draw, random_scene, random_size

seeds = st.integers(0, 2**40)


@given(seeds)
def test_things_lie_apart_inside_the_picture_and_are_clearly_small_or_large(seed: int) -> None:
    scene = random_scene(random.Random(seed))
    unit = (scene.width * scene.height) ** 0.5
    assert len(scene.things) <= 6
    for i, thing in enumerate(scene.things):
        reach = EXTENT * thing.radius
        assert reach <= thing.x <= scene.width - reach
        assert reach <= thing.y <= scene.height - reach
        low, high = RADII[thing.size]
        assert low - 1e-9 <= thing.radius / unit <= high + 1e-9
        for other in scene.things[:i]:
            apart = max(abs(thing.x - other.x), abs(thing.y - other.y))
            assert apart > EXTENT * (thing.radius + other.radius)


@given(seeds)
def test_a_seed_makes_one_scene_and_one_picture(seed: int) -> None:
    first, second = (random_scene(random.Random(seed)) for _ in range(2))
    assert first == second
    pictures = [np.asarray(draw(first, random.Random(seed))) for _ in range(2)]
    assert np.array_equal(*pictures)
    assert pictures[0].shape == (first.height, first.width, 3)


@given(seeds)
def test_the_middle_of_a_thing_has_its_colour_and_not_the_backgrounds(seed: int) -> None:
    scene = random_scene(random.Random(seed))
    pixels = np.asarray(draw(scene, random.Random(seed))).astype(int)
    for thing in scene.things:
        middle = pixels[int(thing.y), int(thing.x)]
        assert np.abs(middle - np.array(scene.background)).max() > 40


def test_every_tiling_up_to_six_tiles_and_a_thumbnail_occurs() -> None:
    rng, processor = random.Random(0), image_processor()
    for grid, _ in GRIDS:
        sizes = [random_size(rng, grid) for _ in range(40)]
        units = [processor.get_number_of_image_patches(height, width, {}) for width, height in sizes]
        expected = 1 if grid == (1, 1) else grid[0] * grid[1] + 1
        assert units.count(expected) >= 30
    tilings = {tiles_of(random_scene(rng), processor) for _ in range(400)}
    assert tilings == {1, 3, 4, 5, 6, 7}
