"""What an instance keeps on its device of every sequence between its first and its last token.

A decode step is started before the host has seen the token of the step before, so whatever a token depends on besides
its own row has to be on the device: the tokens before it, and lists too long to go up with every step. A slot's
history always holds the last token; all of it, and the lists, are there only once the slot was seeded, which
happens for requests that want it (`rows.SEEDED`).
"""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import numpy as np

from epdjax.serving.errors import InvalidRequest
from epdjax.serving.params import MAX_BIASES

MAX_HELD_BACK = 64  # tokens that min_tokens may hold back: stop_token_ids and the model's end-of-sequence tokens
NOBODY = 2**31 - 1  # an id beyond any vocabulary: writes to it are dropped
MASKED = -1e30  # a logit, or what is added to one, of a token that is left out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Arrays by slot; slot 0 belongs to nobody.

    Attributes:
        history: int32 ``[slots + 1, length]``, the tokens of prompt and answer at their positions.
        bias_ids, bias_values: int32 and float32 ``[slots + 1, MAX_HELD_BACK + MAX_BIASES]``, what is added to whose
            logits. The first `MAX_HELD_BACK` mask tokens that end the answer, while `min_tokens` holds them back.
    """

    history: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array

    @classmethod
    def shapes(cls, slots: int, length: int) -> dict[str, tuple[tuple[int, int], type]]:
        """Shape and dtype of each, for `slots` sequences of at most `length` tokens."""
        return {
            "history": ((slots + 1, length), np.int32),
            "bias_ids": ((slots + 1, MAX_HELD_BACK + MAX_BIASES), np.int32),
            "bias_values": ((slots + 1, MAX_HELD_BACK + MAX_BIASES), np.float32),
        }


def slot_row(
    tokens: np.ndarray, logit_bias: Mapping[int, float], stop_token_ids: Collection[int], length: int
) -> dict[str, np.ndarray]:
    """What `seed_slot` writes for a sequence of which `tokens` are known so far, on the host.

    Raises:
        InvalidRequest: more tokens end the answer than can be held back.
    """
    check_held_back(stop_token_ids)
    rows: dict[str, np.ndarray] = {
        name: np.zeros(dims[1], dtype) for name, (dims, dtype) in Slots.shapes(0, length).items()
    }
    rows["history"][: len(tokens)] = tokens
    rows["bias_ids"][:] = NOBODY
    for first, biases in ((0, dict.fromkeys(stop_token_ids, MASKED)), (MAX_HELD_BACK, logit_bias)):
        span = slice(first, first + len(biases))
        rows["bias_ids"][span], rows["bias_values"][span] = list(biases), list(biases.values())
    return rows


def check_held_back(stop_token_ids: Collection[int]) -> None:
    """Refuse more than a slot holds.

    Raises:
        InvalidRequest: says how many may be given.
    """
    if len(stop_token_ids) > MAX_HELD_BACK:
        raise InvalidRequest(
            f"{len(stop_token_ids)} tokens end the answer, the model's own included; min_tokens can hold back at most "
            f"{MAX_HELD_BACK}: give fewer stop_token_ids, or no min_tokens",
            param="stop_token_ids",
        )


def seed_slot(slots: Slots, slot: jax.Array, row: Mapping[str, jax.Array]) -> Slots:
    """Write all of a slot ``[1]`` of the (donated) slots; `row` is a `slot_row`."""
    return Slots(**{name: getattr(slots, name).at[slot[0]].set(values) for name, values in row.items()})


def put_token(slots: Slots, slot_b: jax.Array, position_b: jax.Array, token_b: jax.Array) -> Slots:
    """The slots with tokens entered in their histories."""
    return dataclasses.replace(slots, history=slots.history.at[slot_b, position_b].set(token_b))


def last_tokens(slots: Slots, slot_b: jax.Array, position_b: jax.Array) -> jax.Array:
    """Each sequence's token at a position, int32 ``[b]``."""
    return slots.history[slot_b, position_b]
