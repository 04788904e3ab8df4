"""Answers follow from the scene, and the judge knows right from wrong."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.demo.questions import KINDS, Question, inventory, is_right, random_question
from epdjax.demo.scenes import Scene, Thing, random_scene

seeds = st.integers(0, 2**40)
RED = Thing("circle", "red", "large", 30, 30, 15)
BLUE = Thing("square", "blue", "small", 80, 75, 8)
GREEN = Thing("square", "green", "small", 30, 75, 8)
SCENE = Scene(100, 100, (255, 255, 255), (RED, BLUE, GREEN))


def draw_questions(seed: int, pictures: int, count: int = 20) -> list[Question]:
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(pictures)]
    found = (random_question(rng, scenes) for _ in range(count)) if all(s.things for s in scenes) else ()
    return [question for question in found if question is not None]


@given(seeds, st.sampled_from([1, 2]))
def test_the_judge_accepts_the_right_answer_however_it_is_dressed(seed: int, pictures: int) -> None:
    for question in draw_questions(seed, pictures):
        assert question.kind in KINDS
        assert is_right(question, question.answer)
        assert is_right(question, f" {question.answer.capitalize()}. ")
        assert not is_right(question, "")


@given(seeds)
def test_the_judge_refuses_answers_to_other_scenes(seed: int) -> None:
    for question in draw_questions(seed, 1):
        if question.answer in ("yes", "no"):
            assert not is_right(question, {"yes": "no", "no": "yes"}[question.answer])
        if question.kind == "count":
            assert not is_right(question, str(int(question.answer) + 1))
        if question.kind == "describe":
            assert not is_right(question, question.answer + ", a small red circle")


@pytest.mark.parametrize(
    ("kind", "right", "said"),
    [
        ("count", "3", "There are three circles."),
        ("position", "centre", "in the middle"),
        ("position", "top left", "It is at the top left of the picture"),
        ("compare_two", "the first picture", "the first one"),
        ("existence", "yes", "Yes, there is."),
        ("describe", "a small red circle, two large blue squares", "2 large blue squares and a small red circle"),
    ],
)
def test_other_words_for_the_same_answer_are_right(kind: str, right: str, said: str) -> None:
    assert is_right(Question(kind, "?", right), said)


def expected_answer(text: str) -> str | None:
    """The answer about `SCENE`, worked out by hand, of a few bare questions."""
    return {
        "what shape is the blue one": "square",
        "how many squares are there": "2",
        "how many squares are in the picture": "2",
        "is there a large red circle": "yes",
        "is the red circle small or large": "large",
        "where is the red circle": "top left",
        "where is the blue square": "bottom right",
        "what colour is the circle": "red",
    }.get(text.lower().strip(" ?."))


def test_answers_about_a_known_scene() -> None:
    rng = random.Random(0)
    checked = set()
    for _ in range(30_000):
        question = random_question(rng, [SCENE])
        if question is not None and (answer := expected_answer(question.text)) is not None:
            assert question.answer == answer, question
            checked.add(question.kind)
    assert checked == {"shape", "count", "existence", "size", "position", "colour"}


def test_two_pictures_are_compared_and_searched() -> None:
    other = Scene(100, 100, (0, 0, 0), (RED,))
    rng = random.Random(0)
    for _ in range(2000):
        question = random_question(rng, [SCENE, other])
        if question is not None and question.kind == "both":
            assert question.answer == (
                "yes" if "circle" in question.text.lower() or "red" in question.text.lower() else "no"
            )
        if question is not None and question.kind == "compare_two" and "more squares" in question.text.lower():
            assert question.answer == "the first picture"


def test_descriptions_group_things_in_a_fixed_order() -> None:
    scene = Scene(100, 100, (255, 255, 255), (BLUE, RED, BLUE))
    assert inventory(scene) == "a large red circle, two small blue squares"
