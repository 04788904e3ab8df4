"""Pictures, videos and conversations of InternVL2 and 2.5 checkpoints in the layout of their authors.

Reference: the ``chat`` method and the example code of the InternVL repository.
"""

import json
from pathlib import Path

import numpy as np
from transformers import GotOcr2ImageProcessorPil

from epdjax.models.families.internvl.processor import FRAMES, TileProcessor
from epdjax.models.families.internvl_chat.model import Conversation, InternVLChatConfig
from epdjax.models.processing.files import special_token
from epdjax.models.processing.pictures import like_torchvision

START, STOP = "<|im_start|>", "<|im_end|>"  # around a message in every conversation format supported

_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}<|im_start|>system\n{{ SYSTEM }}{{ SEPARATOR }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + SEPARATOR }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def template(conversation: Conversation) -> str:
    """A conversation format as the source of a Jinja chat template."""
    system, separator = (json.dumps(text, ensure_ascii=False) for text in (conversation.system, conversation.separator))
    return f"{{%- set SYSTEM = {system} -%}}{{%- set SEPARATOR = {separator} -%}}{_TEMPLATE}"


class InternVLChatProcessor(TileProcessor):
    """Tokenizer, conversation format and tiling of an ``internvl_chat`` checkpoint.

    The conversation is the one that ``config.json`` names, as in the reference, not the tokenizer's template.
    """

    config: InternVLChatConfig

    def __init__(self, folder: str | Path, config: InternVLChatConfig):
        """See `Processor`."""
        super().__init__(folder, config)
        height, width, _ = config.vision.unit_shape
        self.image_processor = like_torchvision(GotOcr2ImageProcessorPil)(
            size={"height": height, "width": width},
            min_patches=config.tiling.least,
            max_patches=config.tiling.most,
        )
        self.tiled, self.thumbnail = config.tiling.most > 1, config.tiling.thumbnail
        self.placeholders = {"image": "<image>", "video": "<video>"}
        if config.conversation is not None:
            self.use_template(template(config.conversation))
            for token in (START, STOP):
                special_token(self.tokenizer, "", token)
            self.eos_token_ids |= {int(self.tokenizer.convert_tokens_to_ids(STOP))}

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """The middle frames of `FRAMES` equal parts, counted as the reference's ``load_video`` does."""
        if frames <= FRAMES:
            return np.arange(frames)
        part = (frames - 1) / FRAMES
        return (part / 2 + np.round(part * np.arange(FRAMES))).astype(int)
