"""Tiny InternVL checkpoints, and what transformers makes of them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.processing.pictures import like_torchvision
from tests.models.families.reference import Reference
from tests.models.judge import parts_of, picture, run_hf, user, video
from tests.models.tiny import CHAT_TEMPLATE, make_tiny_checkpoint

MODEL_TYPE = "internvl"

# What the modules are called in memory; some tools write those names.
HUB_NAMES = [
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
]

TEMPLATE = CHAT_TEMPLATE.replace(
    "{% elif part['type'] == 'text' %}",
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}{% elif part['type'] == 'text' %}",
)

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2, q/k norms, untied": {"text": "qwen2", "tied": False, "qk_norm": True, "norm": "rms_norm"},
    "last layer but one, one key head": {"feature_layer": -2, "final_norm": True, "num_kv_heads": 1},
}


def make(folder: Path, **variant: Any) -> None:
    """A complete checkpoint folder."""
    make_tiny_checkpoint(folder, chat_template=TEMPLATE, seed=2, **variant)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Of every kind that the family takes."""
    wide, tall = picture(1, 70, 30), picture(2, 20, 60)
    return {
        "text": user("What is a tile?"),
        "one picture": user(wide, "What is in it?"),
        "two pictures": user("First: ", wide, "Second: ", tall, "Compare."),
        "picture twice": user(tall, tall, "The same?"),
        "video": user(video(3, 3, 40, 24), "What happens?"),
        "video and picture": user(video(4, 2, 30, 30), wide, "Is it in there?"),
    }


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """transformers' model on its own processor's prompt; video frames go through its image processor, one tile each.

    (Its video processor needs torchvision.)
    """
    import torch
    from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, InternVLForConditionalGeneration
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    theirs = InternVLProcessor.__new__(InternVLProcessor)  # without the video processor
    theirs.tokenizer = tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs.image_token, theirs.image_seq_length = tokenizer.context_image_token, 4
    theirs.start_image_token, theirs.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
    processor = like_torchvision(GotOcr2ImageProcessorPil).from_pretrained(folder)
    media = {"<IMG_CONTEXT>": iter(parts_of(messages, "image")), "<video>": iter(parts_of(messages, "video"))}
    tiles: list[np.ndarray] = []

    def expand(mark: re.Match[str]) -> str:
        item = next(media[mark[0]])
        if mark[0] == "<video>":
            out = processor([Image.fromarray(frame) for frame in item.frames], crop_to_patches=False)
            tiles.extend(out["pixel_values"])
            return theirs.replace_video_token({"pixel_values_videos": [np.stack(out["pixel_values"])]}, 0)
        out = processor(item, crop_to_patches=True)
        tiles.extend(out["pixel_values"])
        return theirs.replace_image_token(out, 0)

    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = re.sub("|".join(media), expand, rendered)
    model = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    inputs = {"input_ids": torch.tensor([tokenizer(text).input_ids])}
    features = []
    if tiles:
        inputs["pixel_values"] = torch.tensor(np.stack(tiles))
        with torch.no_grad():
            projected = model.get_image_features(inputs["pixel_values"]).pooler_output
        features = [projected.reshape(-1, projected.shape[-1])]
    return run_hf(model, inputs, features)
