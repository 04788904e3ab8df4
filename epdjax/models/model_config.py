"""What serving asks of a family's config: the shapes that units come in, and what an MM token is."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from epdjax.models.text_config import TextConfig
from epdjax.models.vit import VisionConfig

UnitInputs = Mapping[str, tuple[tuple[int, ...], Any]]


class ModelConfig(abc.ABC):
    """Base of every family's config, with what most families answer; the rest of a config is the family's own business.

    Attributes:
        text: of the language model.
        modalities: the kinds of media it takes: ``image``, ``video``, ``audio``.
    """

    text: TextConfig
    modalities: ClassVar[tuple[str, ...]]

    @property
    def mm_levels(self) -> int:
        """DeepStack levels that an MM token carries besides its embedding."""
        return 0

    @property
    def mm_width(self) -> int:
        """Width of an MM token with its levels."""
        return (1 + self.mm_levels) * self.text.hidden_size

    @property
    def mm_taps(self) -> int:
        """MM tokens that one position of a prompt can be mixed from (see `media.Mix`); 1: no mixing."""
        return 1

    @property
    def mm_bidirectional(self) -> bool:
        """Whether tokens of one picture see one another in both directions (see `media.Prompt.sees`)."""
        return False

    @property
    def mm_block_size(self) -> int:
        """MM tokens in a block."""
        return 64

    @property
    @abc.abstractmethod
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Widths of the encoder's attention heads."""

    @abc.abstractmethod
    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """Declared sizes of encode units, ascending; the last holds a unit that makes `max_tokens` MM tokens."""

    @abc.abstractmethod
    def unit_inputs(self, size: int) -> UnitInputs:
        """Shape and dtype of each of the encoder's inputs for one unit padded to `size`."""

    @abc.abstractmethod
    def unit_tokens(self, size: int) -> int:
        """Rows of MM tokens that the encoder makes of a unit padded to `size`."""


class TileConfig(ModelConfig):
    """Of a family whose encode units are all pictures of the vision tower's size: tiles, crops, frames."""

    vision: VisionConfig

    @property
    def encoder_head_dims(self) -> tuple[int, ...]:
        """Width of the vision tower's attention heads."""
        return (self.vision.head_dim,)

    @property
    def mm_block_size(self) -> int:
        """MM tokens in a block: those of one unit."""
        return self.unit_tokens(1)

    def unit_sizes(self, max_tokens: int) -> tuple[int, ...]:
        """All units are alike."""
        return (1,)

    def unit_inputs(self, size: int) -> UnitInputs:
        """``pixels`` of one unit."""
        return {"pixels": (self.vision.unit_shape, np.uint8)}
