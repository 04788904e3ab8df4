"""The lessons in looking point at what is named."""

from pathlib import Path

import numpy as np
import pytest

from epdjax.demo.data import Sampler
from epdjax.demo.guides import NAMED, NEXT, phrases
from epdjax.demo.questions import Noun
from epdjax.demo.recipe import CURRICULUM
from epdjax.demo.tokenizer import IMAGE, IMAGE_END, IMAGE_START, load_tokenizer, train_tokenizer


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        (
            "Is the RED circle left of the blue square?",
            [Noun(colour="red", shape="circle"), Noun(None, "blue", "square")],
        ),
        ("how many big triangles", [Noun(size="large", shape="triangle")]),
        ("what colour is the green one", [Noun(colour="green")]),
        ("count the things", [Noun()]),
        ("which one is it", []),
    ],
)
def test_noun_phrases_are_found(text: str, nouns: list[Noun]) -> None:
    assert [noun for _, _, noun in phrases(text)] == nouns


@pytest.mark.parametrize("units", [1, 3, 7])
def test_every_lesson_is_a_distribution_over_earlier_picture_tokens(tmp_path: Path, units: int) -> None:
    train_tokenizer(texts=1000).save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    batch = Sampler(tokenizer, 0).batch(units, 4, CURRICULUM[-1])
    picture_tokens = [tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_START, IMAGE, IMAGE_END)]
    lessons = np.argwhere(batch.guide_at >= 0)
    assert len(lessons)
    for row, i in lessons:
        (to,) = np.nonzero(batch.guide_to[row, i])
        assert batch.guide_to[row, i].sum() == pytest.approx(1)
        assert np.isin(batch.tokens[row, to], picture_tokens).all()
        assert to.max() < batch.guide_at[row, i]
        assert batch.guide_head[row, i] in (NAMED, NEXT)
    assert not batch.guide_to[batch.guide_at < 0].any()
