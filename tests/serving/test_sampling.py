import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.serving.sampling import sample

VOCAB = 50
draw = jax.jit(sample)


def rows(logits, *, temperature=1.0, top_k=0, top_p=1.0, seed=0, position=0):
    """Sample from a batch in which every setting is a number or a list."""
    count = len(logits)

    def full(value, dtype):
        return jnp.asarray(np.broadcast_to(np.asarray(value, dtype), (count,)))

    return np.asarray(
        draw(
            jnp.asarray(logits, jnp.float32),
            full(temperature, np.float32),
            full(top_k, np.int32),
            full(top_p, np.float32),
            full(seed, np.int32),
            full(position, np.int32),
        )
    )


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, VOCAB)).astype(np.float32) * 2


def test_temperature_zero_takes_the_likeliest(logits: np.ndarray) -> None:
    mixed = rows(np.repeat(logits, 3, 0), temperature=[0.0, 1.0, 0.0], seed=[1, 2, 3])
    assert mixed[0] == mixed[2] == logits.argmax()


def test_frequencies_follow_the_softmax(logits: np.ndarray) -> None:
    count = 4000
    tokens = rows(np.repeat(logits, count, 0), temperature=0.8, seed=np.arange(count))
    expected = np.asarray(jax.nn.softmax(logits[0] / 0.8))
    found = np.bincount(tokens, minlength=VOCAB) / count
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / count)


def test_positions_draw_independently(logits: np.ndarray) -> None:
    count = 2000
    tokens = rows(np.repeat(logits, count, 0), seed=5, position=np.arange(count))
    expected = np.asarray(jax.nn.softmax(logits[0]))
    found = np.bincount(tokens, minlength=VOCAB) / count
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / count)


def test_top_k_and_top_p_keep_what_they_should(logits: np.ndarray) -> None:
    count = 1500
    many = np.repeat(logits, count, 0)
    ranked = np.argsort(-logits[0])
    assert set(rows(many, top_k=3, seed=np.arange(count), temperature=3.0)) == set(ranked[:3])
    probabilities = np.asarray(jax.nn.softmax(logits[0]))[ranked]
    nucleus = set(ranked[: int(np.searchsorted(np.cumsum(probabilities), 0.6)) + 1])
    assert set(rows(many, top_p=0.6, seed=np.arange(count))) == nucleus
    top5 = probabilities[:5] / probabilities[:5].sum()  # top-p acts on what top-k leaves
    both = set(ranked[: int(np.searchsorted(np.cumsum(top5), 0.7)) + 1])
    assert set(rows(many, top_k=5, top_p=0.7, seed=np.arange(count))) == both
    assert set(rows(many, top_p=1e-6, seed=np.arange(count))) == {ranked[0]}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(-(2**31), 2**31 - 1),
    position=st.integers(0, 10**6),
    temperature=st.floats(0, 5, allow_subnormal=False),
    top_k=st.integers(-1, VOCAB + 5),
    top_p=st.floats(0.05, 1, allow_subnormal=False),
    row=st.integers(0, 3),
    company=st.integers(0, 2**31 - 1),
)
def test_a_row_does_not_see_its_batch(
    seed: int, position: int, temperature: float, top_k: int, top_p: float, row: int, company: int
) -> None:
    """The same logits, settings, seed and position give the same token in any row beside anyone."""
    rng = np.random.default_rng(company)
    batch = rng.standard_normal((4, VOCAB)).astype(np.float32)
    mine = np.random.default_rng(1).standard_normal(VOCAB).astype(np.float32)
    outcomes = []
    for at, others in ((row, rng.uniform(0, 2, 4)), (0, np.zeros(4))):
        logits = batch.copy()
        logits[at] = mine
        settings_of = {
            "temperature": others.copy(),
            "top_k": rng.integers(0, 5, 4),
            "top_p": rng.uniform(0.1, 1, 4),
            "seed": rng.integers(0, 99, 4),
            "position": rng.integers(0, 99, 4),
        }
        for name, value in zip(settings_of, (temperature, top_k, top_p, seed, position)):
            settings_of[name][at] = value
        outcomes.append(rows(logits, **settings_of)[at])
    assert outcomes[0] == outcomes[1]
