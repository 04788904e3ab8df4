"""Costs that are a few constants, fitted to published points."""

import dataclasses

from epdjax.planning.costs.links import Links
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.work import Decode, Encode, MoveKV, MoveMM, Prefill, Work


@dataclasses.dataclass(frozen=True)
class ConstantCosts:
    """Seconds of work, each a constant and something for every unit, token or sequence.

    Attributes:
        encode_unit_s: of an encode unit of each size, by the number of its bucket; the last one holds for all further.
        encode_s: of any encode step besides.
        whole_units: whether a step is as long as the devices with the most units need; otherwise units are shared
            without remainder, as if half a unit could be encoded.
        prefill_token_s: of a prompt token. prefill_s: of any prefill step besides.
        decode_row_s: of a sequence in a decode step. decode_token_s: of a token of its context. decode_s: of any decode
            step besides.
        move_s: of any move besides what `links` say. links: None: nothing.
        tensor_gain: what each device after the first adds to the speed of prefill and decode, as a share of what the
            first has.
    """

    encode_unit_s: tuple[float, ...]
    encode_s: float = 0.0
    whole_units: bool = True
    prefill_token_s: float = 0.0
    prefill_s: float = 0.0
    decode_row_s: float = 0.0
    decode_token_s: float = 0.0
    decode_s: float = 0.0
    move_s: float = 0.0
    links: Links | None = None
    tensor_gain: float = 0.8

    def __post_init__(self) -> None:
        if not self.encode_unit_s:
            raise ValueError("encode_unit_s is empty; give the seconds of a unit, as in (0.05,)")
        seconds = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in seconds.items():
            values = value if isinstance(value, tuple) else (value,)
            if name.endswith(("_s", "_gain")) and not all(one >= 0 for one in values):
                raise ValueError(f"{name} must not be negative, not {value!r}")

    def __call__(self, work: Work, instance: InstanceSpec) -> float:
        """Seconds of work on an instance."""
        match work:
            case Encode():
                each = self.encode_unit_s[min(work.units[0].bucket, len(self.encode_unit_s) - 1)]
                count, width = len(work.units), instance.encode_width
                return self.encode_s + (each * -(-count // width) if self.whole_units else each * count / width)
            case Prefill():
                tokens = sum([chunk.length for chunk in work.chunks])
                return (self.prefill_s + self.prefill_token_s * tokens) / self._speed(instance)
            case Decode():
                seconds = self.decode_s + self.decode_row_s * len(work.sequences)
                if self.decode_token_s:
                    seconds += self.decode_token_s * sum([row.position + 1 for row in work.sequences])
                return seconds / self._speed(instance)
            case MoveMM() | MoveKV():
                return self.move_s + (self.links.seconds(work, instance.tensor) if self.links else 0.0)

    def _speed(self, instance: InstanceSpec) -> float:
        return 1.0 + self.tensor_gain * (instance.tensor - 1)
