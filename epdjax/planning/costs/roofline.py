"""A roofline: what work takes on a chip at a stated share of its published peaks, from counted operations and bytes.

For chips and models of which there is no profile. A step takes the longer of what its operations and what its bytes
take, as if they overlapped entirely, and something to be launched.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from epdjax.mesh.chips import Chip
from epdjax.models.registry import Family
from epdjax.planning.costs.counting import EncodeCount, LanguageCount, encode_count
from epdjax.planning.costs.ladder import rung
from epdjax.planning.costs.links import Links
from epdjax.serving.buckets import Buckets
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's peaks that steps reach, and what they take besides.

    Attributes:
        matrix: of the operations, in prefill and decode. encode: of the operations, in encode.
        bandwidth: of the memory's. link: of the links'.
        launch_s: of any step, from its dispatch to its first operation.
        reduce_s: of one sum over devices that share tensors, besides its bytes; a layer needs two.
        move_s: of any move, besides its bytes.
    """

    matrix: float = 0.6
    encode: float = 0.5
    bandwidth: float = 0.75
    link: float = 0.75
    launch_s: float = 3e-4
    reduce_s: float = 1e-5
    move_s: float = 1e-3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s"):
                if not value >= 0:
                    raise ValueError(f"{field.name} must not be negative, not {value!r}")
            elif not 0 < value <= 1:
                raise ValueError(f"efficiency {field.name} must be in (0, 1], not {value!r}")


@dataclasses.dataclass(frozen=True)
class Roofline:
    """See the module.

    Attributes:
        chip: that every device is. efficiency: shares of its peaks.
        language: counts of the decoder. encode: of the encoder, for each size of units.
        layers: of the decoder.
        links: between instances.
        block_size: tokens per KV block.
        buckets: what work is padded to. None: nothing is padded, and prefill scores the pairs that the causal mask
            leaves. With buckets prefill scores all keys of its pages, as kernels that gather them do; decode always
            reads the context there is, through the block table.
    """

    chip: Chip
    efficiency: Efficiency
    language: LanguageCount
    encode: tuple[EncodeCount, ...]
    layers: int
    links: Links
    block_size: int = 16
    buckets: Buckets | None = None

    @classmethod
    def of(
        cls,
        family: Family,
        model: Any,
        chip: Chip,
        *,
        dtype: Any = "bfloat16",
        buckets: Buckets | None = None,
        max_model_len: int | None = None,
        block_size: int = 16,
        efficiency: Efficiency | None = None,
    ) -> "Roofline":
        """Count a model and lay it against a chip.

        Args:
            family, model: a family and a config of it.
            chip: see `epdjax.mesh.chips`.
            dtype: of weights and pools; the chip's peak is that of bfloat16 in any case.
            buckets: see the class; they also say which sizes units have.
            max_model_len: without `buckets`, the longest context, which decides the sizes of units; None: as the
                engine's default.
            block_size: tokens per KV block.
            efficiency: None: the defaults.
        """
        shares, text = efficiency or Efficiency(), model.text
        longest = max_model_len or min(text.max_position_embeddings, 8192)
        sizes = buckets.unit_sizes if buckets else model.unit_sizes(longest)
        link = chip.link_gbytes * 1e9 * shares.link
        return cls(
            chip=chip,
            efficiency=shares,
            language=LanguageCount.of(text, dtype),
            encode=tuple(encode_count(family, model, size, jnp.dtype(dtype).name) for size in sizes),
            layers=text.num_layers,
            links=Links.of(model, bytes_per_s=link, latency_s=shares.move_s, dtype=dtype, block_size=block_size),
            block_size=block_size,
            buckets=buckets,
        )

    def __call__(self, work: Work, instance: InstanceSpec) -> float:
        """Seconds of work on an instance."""
        match work:
            case Decode():
                return self._decode(work, instance.tensor)
            case Prefill():
                return self._prefill(work, instance.tensor)
            case Encode():
                return self.encode_s(len(work.units), work.units[0].bucket, instance.encode_width)
            case MoveMM() | MoveKV():
                return self.links.seconds(work, instance.tensor)

    def encode_s(self, units: int, bucket: int = 0, width: int = 1) -> float:
        """Encode step over units of one size.

        Args:
            units: how many. bucket: the number of their size.
            width: devices that share them; the step is as long as that of those with the most.
        """
        each, counted = -(-units // width), self.encode[min(bucket, len(self.encode) - 1)]
        if self.buckets:
            each = rung(self.buckets.unit_rows(self.buckets.unit_sizes[bucket]), each)
        moved = counted.weight_bytes + each * counted.unit_bytes
        return self._step(each * counted.flops, moved, self.efficiency.encode)

    def _prefill(self, work: Prefill, tensor: int) -> float:
        chunks, count = work.chunks, self.language
        ends = [chunk.start + chunk.length for chunk in chunks]
        shape = self.buckets.prefill_for(len(chunks), max(chunk.length for chunk in chunks)) if self.buckets else None
        if self.buckets and shape:
            rows, tokens = shape[0], shape[0] * shape[1]
            pages = rung(self.buckets.prefill_pages, -(-max(ends) // self.block_size))
            pairs = float(self.layers * tokens * pages * self.block_size)
        else:
            rows, tokens = len(chunks), sum(chunk.length for chunk in chunks)
            pairs = sum(count.pairs(chunk.start, chunk.length) for chunk in chunks)
        return self._language(tokens, rows, pairs, count.keys(ends), tensor)

    def _decode(self, work: Decode, tensor: int) -> float:
        contexts = [row.position + 1 for row in work.sequences]
        rows = rung(self.buckets.decode_rows, len(contexts)) if self.buckets else len(contexts)
        keys = self.language.keys(contexts)
        return self._language(rows, rows, keys, keys, tensor)

    def _language(self, tokens: int, rows: int, pairs: float, keys: float, tensor: int) -> float:
        count = self.language
        flops = tokens * count.token_flops + rows * count.row_flops + pairs * count.pair_flops
        moved = count.weight_bytes + tokens * count.token_bytes + keys * count.kv_bytes
        seconds = self._step(flops / tensor, moved / tensor, self.efficiency.matrix)
        if tensor > 1:
            # A ring sends every byte round twice, but for each device's own share.
            sent = 2 * (tensor - 1) / tensor * tokens * count.reduced_bytes
            seconds += sent / self.links.bytes_per_s + 2 * self.layers * self.efficiency.reduce_s
        return seconds

    def _step(self, flops: float, moved: float, share: float) -> float:
        compute = flops / (self.chip.tflops * 1e12 * share)
        memory = moved / (self.chip.gbytes * 1e9 * self.efficiency.bandwidth)
        return self.efficiency.launch_s + max(compute, memory)
