"""Clips and prompts of Ultravox.

Reference: the ``UltravoxProcessor`` of fixie-ai's repository. In v0.3 a clip of at most one window is encoded just as
long as it is. Later ones pad all clips of a request to the longest, with silence, and cut them into windows; a window
is padded with zeros to the longest. Silence is nothing to look at, but the positions it fills are encoded, and those
that share an MM token with the end of a clip are in it: what a request says of a clip depends on the others in it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epdjax.models.families.ultravox.model import UltravoxConfig
from epdjax.models.media import Audio, EncodeUnit, MediaContext, MediaItem, Prompt
from epdjax.models.processing.base import Processor
from epdjax.models.processing.log_mel import LogMel, padded

PLACEHOLDER = "<|audio|>"
LEAST_FRAMES = 2  # of a clip, after v0.3: shorter ones are padded


class UltravoxProcessor(Processor):
    """Tokenizer, chat template and log-mel frames of an Ultravox checkpoint.

    MM tokens stand where the prompt repeats the tokenizer's end of turn, as in the reference. Ordinary turns end in it
    too, so their positions are counted, not looked for.
    """

    config: UltravoxConfig

    def __init__(self, folder: str | Path, config: UltravoxConfig):
        """See `Processor`.

        Raises:
            ValueError: also for a feature extractor that does not fit the encoder, and a tokenizer without an end.
        """
        super().__init__(folder, config)
        self.mel = LogMel.from_folder(self.folder, config.audio.mel_bins)
        self.sampling_rate = self.mel.rate
        if (end := self.tokenizer.eos_token) not in self.tokenizer.get_added_vocab():
            raise ValueError(f"the tokenizer's eos_token is {end!r}, which is none of its added tokens")
        self.mm_token, self.mm_token_id = end, int(self.tokenizer.eos_token_id)
        self.placeholders = {"audio": PLACEHOLDER}

    def use_template(self, template: str | None) -> None:
        """See `Processor`."""
        super().use_template(template)
        self._list_content &= not self._string_content  # templates that loop over parts know no clips

    # ---- clips ----------------------------------------------------------------------------------------------------

    def media_shape(self, samples: int) -> tuple[tuple[int, int], ...]:
        """(log-mel frames, MM tokens) of each window of a clip of so many samples."""
        hop, window = self.mel.hop, self.config.audio.window
        frames = max(LEAST_FRAMES, -(-samples // hop)) if self.config.later else samples // hop
        parts = (min(window, frames - start) for start in range(0, frames, window))
        return tuple((part, -(-part // (2 * self.config.stack))) for part in parts)

    def prepare_audio(self, audio: Audio, context: MediaContext | None = None) -> MediaItem:
        """The log-mel frames of a clip, as if it were the longest of its request; `layout` puts that right.

        Raises:
            ValueError: see `LogMel.checked`; v0.3: a clip shorter than what one frame looks at, or longer than the
                encoder's window (30 s).
        """
        later, hop = self.config.later, self.mel.hop
        samples = self.mel.checked(audio, 1 if later else self.mel.span // 2 + 1)
        shape = self.media_shape(len(samples))
        if not later and len(shape) > 1:
            window = self.config.audio.window * hop
            raise ValueError(
                f"a clip of {len(samples) / self.mel.rate:.2f} s is too long: this model takes "
                f"{window / self.mel.rate:g} s at most: cut it"
            )
        frames = sum(part for part, _ in shape)
        units = self._units(padded(samples, frames * hop) if later else samples, shape, frames)
        meta = {"samples": samples, "frames": frames}
        return MediaItem("audio", units, sum(tokens for _, tokens in shape), meta=meta)

    def layout(self, prompt: Prompt) -> Prompt:
        """Clips shorter than the longest of the request are prepared anew, padded to it (after v0.3)."""
        longest = max((item.meta["frames"] for item in prompt.media), default=0)
        if not self.config.later:
            return prompt
        media = tuple(
            item if item.meta["frames"] == longest else self._lengthened(item, longest) for item in prompt.media
        )
        return dataclasses.replace(prompt, media=media)

    def _lengthened(self, item: MediaItem, longest: int) -> MediaItem:
        samples, shape = item.meta["samples"], self.media_shape(len(item.meta["samples"]))
        # What is further behind than a stack reaches is not used, and silence has no end worth computing.
        frames = min(longest, item.meta["frames"] + 2 * self.config.stack + 4)
        return dataclasses.replace(item, units=self._units(padded(samples, frames * self.mel.hop), shape, longest))

    def _units(self, samples: np.ndarray, shape: Sequence[tuple[int, int]], longest: int) -> tuple[EncodeUnit, ...]:
        """The windows of a clip: `samples` with the silence behind it, `longest` frames with all of that."""
        window, stack = self.config.audio.window, self.config.stack
        mel_fb = self.mel(samples)
        width = min(window, longest)  # that every window is padded to
        units = []
        for i, (frames, tokens) in enumerate(shape):
            # The last position that is stacked sees one frame more.
            size = min(width, 2 * stack * tokens + 1)
            part_fb = mel_fb[i * window : (i + 1) * window][:size]
            inputs = {
                "mel": np.pad(part_fb, ((0, size - len(part_fb)), (0, 0))),
                "frames": np.ones(size, np.bool_),
                "valid": np.ones((frames + 1) // 2, np.bool_),
                "kept": np.ones(min((width + 1) // 2, stack * tokens), np.bool_),
            }
            units.append(EncodeUnit(inputs, size, tokens))
        return tuple(units)

    # ---- prompts --------------------------------------------------------------------------------------------------

    def join_parts(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """Content parts as one string, with a space between those that have none at their ends."""
        joined = ""
        for part in parts:
            text = part["text"] if part["type"] == "text" else PLACEHOLDER
            space = " " if joined and text and not (joined[-1].isspace() or text[0].isspace()) else ""
            joined += space + text
        return joined

    def encode(self, text: str, media: Sequence[MediaItem] = ()) -> Prompt:
        """See `Processor.encode`; MM positions are counted from where the placeholders were."""
        media = self._in_order(text, media)
        expanded = self._expand_all(text, media)
        encoding = self._tokenise(expanded, offsets=True)
        starts, ends = np.asarray(encoding.offsets, np.int64).reshape(-1, 2).T
        token_ids = np.asarray(encoding.ids, np.int32)
        end, spans = 0, []
        for item, piece in zip(media, text.split(PLACEHOLDER), strict=False):
            begin = end + len(piece)
            end = begin + len(self.mm_token) * item.tokens
            spans.append(np.flatnonzero((starts >= begin) & (ends <= end) & (ends > starts)))
        mm_positions = np.concatenate([np.zeros(0, np.int64), *spans]).astype(np.int32)
        expected = sum(item.tokens for item in media)
        if len(mm_positions) != expected or (token_ids[mm_positions] != self.mm_token_id).any():
            raise ValueError(f"the prompt's clips tokenise to {len(mm_positions)} tokens, expected {expected}")
        return self.layout(Prompt(token_ids, mm_positions, tuple(media)))
