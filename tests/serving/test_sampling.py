from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.serving.params import SamplingParams
from epdjax.serving.sampling import sample
from epdjax.serving.slots import MAX_HELD_BACK, Slots, put_token, seed_slot, slot_row
from tests.serving.sampled import LENGTH, Case, packed, sampled

VOCAB = 50


def draws(logits: np.ndarray, count: int, **params: Any) -> np.ndarray:
    """Tokens drawn from the same logits with seeds 0, 1, ..."""
    cases = [Case(SamplingParams(**params), seed=seed, seeded=False) for seed in range(count)]
    return sampled(np.repeat(logits, count, 0), cases).tokens


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, VOCAB)).astype(np.float32) * 2


def test_temperature_zero_takes_the_likeliest(logits: np.ndarray) -> None:
    cases = [Case(SamplingParams(temperature=t), seed=seed) for seed, t in enumerate((0.0, 1.0, 0.0))]
    mixed = sampled(np.repeat(logits, 3, 0), cases).tokens
    assert mixed[0] == mixed[2] == logits.argmax()


def test_frequencies_follow_the_softmax(logits: np.ndarray) -> None:
    count = 4000
    expected = np.asarray(jax.nn.softmax(logits[0] / 0.8))
    found = np.bincount(draws(logits, count, temperature=0.8), minlength=VOCAB) / count
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / count)


def test_positions_draw_independently(logits: np.ndarray) -> None:
    """The same seed all the way, over all positions that a sequence may have, with a few seeds."""
    cases = [Case(seed=seed, prompt=(0,) * n, seeded=False) for seed in range(40) for n in range(1, LENGTH)]
    tokens = sampled(np.repeat(logits, len(cases), 0), cases).tokens
    expected = np.asarray(jax.nn.softmax(logits[0]))
    found = np.bincount(tokens, minlength=VOCAB) / len(cases)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / len(cases))


def test_what_is_left_out_is_never_drawn(logits: np.ndarray) -> None:
    count = 1500
    ranked = np.argsort(-logits[0])
    assert set(draws(logits, count, top_k=3, temperature=3.0)) == set(ranked[:3])
    probabilities = np.asarray(jax.nn.softmax(logits[0]))[ranked]
    nucleus = set(ranked[: int(np.searchsorted(np.cumsum(probabilities), 0.6)) + 1])
    assert set(draws(logits, count, top_p=0.6)) == nucleus
    top5 = probabilities[:5] / probabilities[:5].sum()  # top-p acts on what top-k leaves
    both = set(ranked[: int(np.searchsorted(np.cumsum(top5), 0.7)) + 1])
    assert set(draws(logits, count, top_k=5, top_p=0.7)) == both
    assert set(draws(logits, count, top_p=1e-6)) == {ranked[0]}
    likely = ranked[probabilities >= 0.2 * probabilities[0]]
    assert 2 < len(likely) < 10
    assert set(draws(logits, count, min_p=0.2)) == set(likely)
    assert set(draws(logits, count, min_p=0.2, top_k=2)) == set(likely[:2])
    kept = probabilities[: len(likely)] / probabilities[: len(likely)].sum()  # top-p acts on what min-p leaves
    nucleus = set(likely[: int(np.searchsorted(np.cumsum(kept), 0.8)) + 1])
    assert set(draws(logits, count, min_p=0.2, top_p=0.8)) == nucleus
    assert set(draws(logits, count, min_p=1.0)) == {ranked[0]}


def kept(values: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may be drawn, one by one in order of their logits, equal ones in that of their ids."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    weights = np.exp(values.astype(np.float64) - values.max())
    order = [i for i in order if weights[i] >= min_p][: top_k if top_k > 0 else None]
    left, chosen = top_p * sum(weights[i] for i in order), set()
    for i in order:
        if left <= 0:
            break
        chosen.add(i)
        left -= weights[i]
    return chosen


@pytest.mark.parametrize(
    "limits",
    [
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 4},
        {"top_k": 7},
        {"top_p": 1e-6},
        {"top_p": 0.3},
        {"top_p": 0.55},
        {"top_k": 5, "top_p": 0.5},
        {"min_p": 0.5},
        {"min_p": 0.5, "top_k": 3},
        {"min_p": 1.0, "top_p": 0.5},
    ],
    ids=str,
)
def test_of_equal_tokens_the_first_ones_are_kept(limits: dict[str, Any]) -> None:
    """Exactly k, and of a nucleus the fewest; what min-p keeps depends on the likelihood alone."""
    values = np.array([0.0, 1.0, 2.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0, -1.0], np.float32)
    expected = kept(values, **({"top_k": 0, "top_p": 1.0, "min_p": 0.0} | limits))
    assert set(draws(values[None], 400, **limits)) == expected
    if "top_p" not in limits and "min_p" not in limits:
        assert len(expected) == limits["top_k"]


def test_top_k_of_one_is_the_greedy_token_however_many_are_as_likely() -> None:
    ties = np.zeros((1, VOCAB), np.float32)
    assert set(draws(ties, 400, top_k=1)) == {0} == set(draws(ties, 400, temperature=0.0))
    assert set(draws(ties, 400, top_k=3)) == {0, 1, 2}
    ties[0, [30, 40]] = 1.0
    assert set(draws(ties, 400, top_k=1, temperature=5.0)) == {30}
    assert set(draws(ties, 400, top_k=3, temperature=5.0)) == {0, 30, 40}


def test_a_vocabulary_over_several_devices_keeps_the_same_tokens() -> None:
    """As where tensors are split: logits over two devices and over four, ties across their borders."""
    rng = np.random.default_rng(5)
    logits = rng.integers(-2, 3, (6, 64)).astype(np.float32)
    limits = [
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.4},
        {"top_k": 9, "top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 0.0},
    ]
    rows, slots = packed([Case(SamplingParams(**some), seed=i) for i, some in enumerate(limits)])
    expected = jax.jit(sample, static_argnums=3)(logits, rows, slots, LENGTH).tokens
    for count in (2, 4):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("tensor",))
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        placed = (jax.device_put(logits, split), *jax.device_put((rows, slots), whole))
        made = jax.jit(sample, static_argnums=3)(*placed, LENGTH).tokens
        np.testing.assert_array_equal(made, expected)


@settings(max_examples=30)
@given(
    values=st.lists(st.sampled_from([-3.0, 0.0, 1.0, 2.0]), min_size=VOCAB, max_size=VOCAB),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1.0, 0.9, 0.35]),
)
def test_nothing_but_what_is_kept_is_drawn(values: list[float], top_k: int, top_p: float) -> None:
    of_row = np.array(values, np.float32)
    near = kept(of_row, top_k, top_p + 1e-5, 0.0)  # float32 sums may end one token later
    assert set(draws(of_row[None], 64, top_k=top_k, top_p=top_p)) <= near


tokens = st.integers(0, VOCAB - 1)
bounded = st.floats(-2, 2, allow_subnormal=False)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_k=st.integers(-1, VOCAB + 5),
    top_p=st.floats(0.05, 1, allow_subnormal=False),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.5]),
    presence_penalty=st.one_of(st.just(0.0), bounded),
    frequency_penalty=st.one_of(st.just(0.0), bounded),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100, allow_subnormal=False), max_size=4),
    min_tokens=st.integers(0, 4),
    logprobs=st.sampled_from([None, None, 0, 5]),
)
cases = st.builds(
    Case,
    params=params,
    prompt=st.lists(tokens, min_size=1, max_size=20),
    answer=st.lists(tokens, max_size=20),
    stops=st.frozensets(tokens, max_size=3),
    seed=st.integers(-(2**31), 2**31 - 1),
)
plain = st.builds(Case, params=st.builds(SamplingParams, temperature=st.sampled_from([0.0, 1.0])))


@settings(max_examples=40)
@given(mine=cases, company=st.lists(cases, min_size=3, max_size=3), quiet=plain, row=st.integers(0, 3))
def test_a_row_does_not_see_its_batch(mine: Case, company: list[Case], quiet: Case, row: int) -> None:
    """The same logits, settings, seed and history give the same token and log-probabilities beside anyone."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((1, VOCAB)).astype(np.float32) * 3
    outcomes = []
    for at, others in ((row, company), (0, [quiet] * 3)):
        batch = rng.standard_normal((4, VOCAB)).astype(np.float32)
        batch[at] = logits
        out = sampled(batch, [*others[:at], mine, *others[at:]])
        assert out.logprobs is not None
        shown = [] if mine.params.logprobs is None else [out.logprobs.chosen[at], *out.logprobs.top[at]]
        outcomes.append((out.tokens[at], shown))
    assert outcomes[0][0] == outcomes[1][0]
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])


def test_logprobs_are_of_the_model_s_own_distribution(logits: np.ndarray) -> None:
    """Whatever else a row asks for changes its token and not its log-probabilities."""
    expected = np.asarray(jax.nn.log_softmax(logits[0]))
    ranked = np.argsort(-logits[0])
    forced = int(ranked[30])
    everything = SamplingParams(
        temperature=0.3, top_k=5, repetition_penalty=2.0, presence_penalty=1.0, logit_bias={forced: 100}, logprobs=20
    )
    out = sampled(np.repeat(logits, 2, 0), [Case(everything), Case(SamplingParams(temperature=0, logprobs=3))])
    assert out.tokens.tolist() == [forced, ranked[0]]
    assert out.logprobs is not None
    np.testing.assert_allclose(out.logprobs.chosen, expected[[forced, ranked[0]]], rtol=1e-5)
    for row in range(2):
        np.testing.assert_array_equal(out.logprobs.ids[row], ranked[:20])
        np.testing.assert_allclose(out.logprobs.top[row], expected[ranked[:20]], rtol=1e-5)


def test_a_vocabulary_smaller_than_the_list_of_likeliest() -> None:
    few = np.random.default_rng(3).standard_normal((1, 6))
    out = sampled(few, [Case(SamplingParams(temperature=0, logprobs=20))])
    assert out.logprobs is not None and out.logprobs.ids.tolist() == [np.argsort(-few[0]).tolist()]


def test_seeding_a_slot_leaves_the_others_alone() -> None:
    slots = Slots(**{name: np.ones(dims, dtype) for name, (dims, dtype) in Slots.shapes(3, LENGTH).items()})
    row = slot_row(np.array([4, 5, 6], np.int32), {9: 1.5}, {8, 2}, LENGTH)
    made = put_token(seed_slot(jax.device_put(slots), np.array([2]), row), np.array([2]), np.array([3]), np.array([7]))
    assert made.history[2].tolist() == [4, 5, 6, 7] + [0] * (LENGTH - 4)
    assert (int(made.bias_ids[2, MAX_HELD_BACK]), float(made.bias_values[2, MAX_HELD_BACK])) == (9, 1.5)
    assert set(made.bias_ids[2, :2].tolist()) == {2, 8}
    for array in jax.tree.leaves(made):
        assert (np.asarray(array)[[0, 1, 3]] == 1).all()
