"""What moves between instances take: bytes over bandwidth, and a latency."""

import dataclasses
from typing import Any

import numpy as np

from epdjax.serving.work import MoveKV, MoveMM


@dataclasses.dataclass(frozen=True)
class Links:
    """Links between instances that are all alike.

    Attributes:
        bytes_per_s: that a device receives. latency_s: of any move, its two dispatches and its landing.
        mm_block_bytes: of the MM tokens in a block.
        kv_block_bytes: of the keys and values in a block, all layers and heads.
    """

    bytes_per_s: float
    latency_s: float
    mm_block_bytes: float
    kv_block_bytes: float

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s of a link must be greater than 0, not {self.bytes_per_s!r}")
        for name in ("latency_s", "mm_block_bytes", "kv_block_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")

    @classmethod
    def of(cls, model: Any, *, bytes_per_s: float, latency_s: float, dtype: Any, block_size: int = 16) -> "Links":
        """Links over which a model's MM tokens and KV blocks go.

        Args:
            model: the model's config.
            bytes_per_s, latency_s: see the class.
            dtype: of the pools.
            block_size: tokens per KV block.

        Raises:
            ValueError: a bandwidth that is not positive, or a latency that is negative.
        """
        text, itemsize = model.text, np.dtype(dtype).itemsize
        kv_token = 2 * text.num_kv_heads * text.head_dim * text.num_layers * itemsize
        return cls(bytes_per_s, latency_s, model.mm_block_size * model.mm_width * itemsize, block_size * kv_token)

    def bytes(self, work: MoveMM | MoveKV) -> float:
        """Bytes that a move takes along, padding of the last block included."""
        if isinstance(work, MoveMM):
            return self.mm_block_bytes * sum(len(row.blocks) for row in work.rows)
        return self.kv_block_bytes * sum(len(part.blocks) for part in work.parts)

    def seconds(self, work: MoveMM | MoveKV, tensor: int = 1) -> float:
        """Of a move.

        Every device of the destination has a link of its own: of KV each takes its share of the heads, of MM tokens
        each takes all. What an instance moves to itself crosses no link.

        Args:
            tensor: width of the destination.
        """
        if work.source == work.instance:
            return self.latency_s
        share = 1 if isinstance(work, MoveMM) else tensor
        return self.latency_s + self.bytes(work) / share / self.bytes_per_s
