"""Bias, penalties, min-p and min_tokens against the few lines of NumPy that they mean, and against transformers."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdjax.serving.adjust import drop_unlikely
from epdjax.serving.errors import InvalidRequest
from epdjax.serving.params import MAX_BIASES, SamplingParams
from epdjax.serving.slots import MASKED, MAX_HELD_BACK, slot_row
from tests.serving.sampled import LENGTH, Case, adjusted, sampled

VOCAB = 40
tokens = st.integers(0, VOCAB - 1)
penalty = st.floats(-2, 2, allow_subnormal=False)
cases = st.builds(
    Case,
    params=st.builds(
        SamplingParams,
        temperature=st.just(0.0),
        repetition_penalty=st.floats(0.25, 4, allow_subnormal=False),
        presence_penalty=penalty,
        frequency_penalty=penalty,
        logit_bias=st.dictionaries(tokens, st.floats(-100, 100, allow_subnormal=False), max_size=VOCAB),
        min_tokens=st.integers(0, 8),
    ),
    prompt=st.lists(tokens, min_size=1, max_size=LENGTH // 2),
    answer=st.lists(tokens, max_size=LENGTH // 2 - 1),
    stops=st.frozensets(tokens, max_size=6),
)


def expected(logits: np.ndarray, case: Case) -> np.ndarray:
    """What a sequence's settings mean."""
    out, params = logits.astype(np.float64), case.params
    for token, value in params.logit_bias.items():
        out[token] += value
    for token in {*case.prompt, *case.answer}:
        out[token] = (
            out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
        )
    for token, times in collections.Counter(case.answer).items():
        out[token] -= params.frequency_penalty * times + params.presence_penalty
    if len(case.answer) < params.min_tokens:
        out[list(case.stops)] = MASKED
    return out


@given(st.lists(cases, min_size=3, max_size=3), st.integers(0, 2**31))
def test_logits_are_adjusted_as_described(batch: list[Case], seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((3, VOCAB)).astype(np.float32) * 5
    wanted = np.stack([expected(row, case) for row, case in zip(logits, batch)])
    found = adjusted(logits, batch)
    masked = wanted == MASKED
    assert (found[masked] < MASKED / 10).all()
    np.testing.assert_allclose(found[~masked], wanted[~masked], rtol=1e-4, atol=1e-4)
    assert sampled(logits, batch).tokens.tolist() == found.argmax(-1).tolist()


@given(st.lists(cases, min_size=2, max_size=2), st.integers(0, 2**31))
def test_neutral_settings_change_no_bit(others: list[Case], seed: int) -> None:
    """Also in a slot that still holds somebody else's history and lists."""
    logits = np.random.default_rng(seed).standard_normal((3, VOCAB)).astype(np.float32) * 5
    mine = Case(prompt=range(20), answer=range(10), seeded=False)
    np.testing.assert_array_equal(adjusted(logits, [*others, mine])[2], logits[2])


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.2, 0.7, 1.0]))
def test_min_p_drops_what_is_so_many_times_less_likely(seed: int, min_p: float) -> None:
    logits = np.random.default_rng(seed).standard_normal((2, VOCAB)).astype(np.float32) * 3
    kept = np.asarray(drop_unlikely(logits, np.array([min_p, 0.0], np.float32))) > MASKED
    probability = np.exp(logits[0].astype(np.float64))
    ratio = probability / probability.max()
    sure = np.abs(ratio - min_p) > 1e-5
    assert (kept[0] == (ratio >= min_p))[sure].all()
    assert kept[0, logits[0].argmax()] and kept[1].all()


def test_a_bias_of_100_forces_and_of_minus_100_forbids() -> None:
    logits = np.random.default_rng(0).standard_normal((3, VOCAB)) * 5
    best, worst = int(logits[0].argmax()), int(logits[0].argmin())
    forced = Case(SamplingParams(temperature=0, logit_bias={worst: 100}))
    hot = Case(SamplingParams(temperature=2.0, logit_bias={worst: 100}), seed=5)
    forbidden = Case(SamplingParams(temperature=0, logit_bias={best: -100}))
    found = sampled(np.repeat(logits[:1], 3, 0), [forced, hot, forbidden]).tokens
    assert found[0] == found[1] == worst
    assert found[2] == np.argsort(-logits[0])[1]


def test_min_tokens_holds_even_against_a_bias() -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    params = SamplingParams(temperature=0, min_tokens=2, logit_bias={3: 100})
    early = Case(params, answer=(1,), stops=frozenset({3}))
    late = Case(params, answer=(1, 1), stops=frozenset({3}))
    assert sampled(logits, [early, late]).tokens.tolist() == [0, 3]


def test_as_many_biases_and_stops_as_are_allowed() -> None:
    bias = {token: float(token % 7) for token in range(MAX_BIASES)}
    row = slot_row(np.zeros(1, np.int32), bias, range(MAX_HELD_BACK), LENGTH)
    entries = list(zip(row["bias_ids"].tolist(), row["bias_values"].tolist()))
    assert dict(entries[MAX_HELD_BACK:]) == bias
    assert entries[:MAX_HELD_BACK] == [(token, np.float32(MASKED)) for token in range(MAX_HELD_BACK)]
    with pytest.raises(InvalidRequest, match="min_tokens can hold back at most"):
        slot_row(np.zeros(1, np.int32), {}, range(MAX_HELD_BACK + 1), LENGTH)


@pytest.mark.torch
def test_transformers_agree() -> None:
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(4)
    logits = rng.standard_normal((1, VOCAB)).astype(np.float32) * 4
    history = rng.integers(0, VOCAB, 30)
    case = Case(SamplingParams(repetition_penalty=1.7), prompt=history[:20], answer=history[20:])
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(history[None]), torch.tensor(logits))
    np.testing.assert_allclose(adjusted(logits, [case]), theirs.numpy(), rtol=1e-6)
    theirs = MinPLogitsWarper(0.1, filter_value=MASKED)(torch.tensor(history[None]), torch.tensor(logits))
    np.testing.assert_array_equal(drop_unlikely(logits, np.array([0.1], np.float32)), theirs.numpy())
