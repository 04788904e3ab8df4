"""What a family's outside judge says of a conversation."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A conversation as the reference implementation sees it.

    Attributes:
        token_ids: int ``[t]``, placeholders expanded.
        mm_tokens: float32 ``[n, width]``, what stands in the prompt's MM positions, in order.
        logits: float32 ``[t, vocab]``.
        greedy: int ``[32]``, the answer, end-of-sequence tokens ignored.
    """

    token_ids: np.ndarray
    mm_tokens: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
