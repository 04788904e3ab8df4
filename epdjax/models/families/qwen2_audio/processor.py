"""Clips and prompts of Qwen2-Audio.

References: HF ``Qwen2AudioProcessor`` and ``WhisperFeatureExtractor``.
"""

from pathlib import Path
from typing import Any

import numpy as np

from epdjax.models.families.qwen2_audio.model import Qwen2AudioConfig
from epdjax.models.media import Audio, EncodeUnit, MediaContext, MediaItem
from epdjax.models.processing.base import Processor
from epdjax.models.processing.files import special_token
from epdjax.models.processing.log_mel import LogMel, feature_settings, padded

# Prints what transformers' processor prints where a folder has no template of its own: clips are numbered.
TEMPLATE = (
    "{%- set clips = namespace(count=0) -%}"
    "{%- if messages and messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'audio' -%}"
    "{%- set clips.count = clips.count + 1 -%}"
    "{{ 'Audio ' ~ clips.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SILENCE = 4  # frames computed behind a clip: two are used, and the mirrored end stays out of them


class Qwen2AudioProcessor(Processor):
    """Tokenizer, chat template and log-mel frames of a Qwen2-Audio checkpoint."""

    config: Qwen2AudioConfig
    fallback_template = TEMPLATE

    def __init__(self, folder: str | Path, config: Qwen2AudioConfig):
        """See `Processor`.

        Raises:
            ValueError: also for a feature extractor that does not fit the encoder.
        """
        super().__init__(folder, config)
        if "audio" not in (self.chat_template or ""):  # the tokenizer's, for text alone: transformers does not use it
            self.use_template(TEMPLATE)
        self.mel = LogMel.from_folder(self.folder, config.audio.mel_bins)
        seconds = feature_settings(self.folder).get("chunk_length", 30)
        if (frames := seconds * self.mel.rate // self.mel.hop) != config.audio.window:
            raise ValueError(
                f"the feature extractor's chunk_length of {seconds} s makes {frames} frames; the encoder takes "
                f"{config.audio.window}, twice audio_config.max_source_positions: both must be the same"
            )
        self.sampling_rate = self.mel.rate
        self.mm_token = special_token(self.tokenizer, "audio_token", "<|AUDIO|>")
        self.mm_token_id = int(self.tokenizer.convert_tokens_to_ids(self.mm_token))
        if self.mm_token_id != config.audio_token_id:
            raise ValueError(
                f"audio_token_index is {config.audio_token_id}, but the tokenizer gives {self.mm_token!r} the id "
                f"{self.mm_token_id}"
            )
        self.placeholders = {"audio": self.mm_token}

    def media_shape(self, samples: int) -> tuple[int, int]:
        """(log-mel frames, MM tokens) of a clip of so many samples; one beyond the encoder's window is cut."""
        frames = min(-(-samples // self.mel.hop), self.config.audio.window)
        return frames, (frames + 1) // 4

    def prepare_audio(self, audio: Audio, context: MediaContext | None = None) -> MediaItem:
        """The log-mel frames of a clip; what is behind the encoder's window (30 s) is cut off, as in transformers.

        Raises:
            ValueError: see `LogMel.checked`; up to 20 ms make no MM token.
        """
        hop, window = self.mel.hop, self.config.audio.window
        samples = self.mel.checked(audio, 2 * hop + 1)[: window * hop]
        frames, tokens = self.media_shape(len(samples))
        # transformers pads to the whole window; what is so far behind the clip is masked.
        mel_fb = self.mel(padded(samples, min(frames + SILENCE, window) * hop))[: frames + 2]
        inputs = {"mel": mel_fb, "valid": np.ones((frames + 1) // 2, np.bool_)}
        return MediaItem("audio", (EncodeUnit(inputs, len(mel_fb), tokens),), tokens)

    def _apply_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        # Published templates know a clip by the key that holds it rather than by its type.
        def named(content: Any) -> Any:
            if not isinstance(content, list):
                return content
            return [{**part, "audio_url": ""} if part["type"] == "audio" else part for part in content]

        messages = [{**message, "content": named(message["content"])} for message in messages]
        return super()._apply_template(messages, add_generation_prompt)
