"""What the families with transformers as their judge share: media, messages, and a run of its model."""

from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.media import Audio, Video
from tests.models.families.reference import Reference


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise, the same for the same seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def video(seed: int, frames: int, width: int, height: int) -> Video:
    """Noise of two frames a second, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    return Video(pixels, np.arange(frames) / 2, 2.0)


def clip(seed: int, samples: int) -> Audio:
    """Chirps in noise at 16 kHz, the same for the same seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    chirp = np.sin(2 * np.pi * (200 + 400 * seed + 900 * t) * t) * np.sin(2 * np.pi * (2 + seed) * t)
    return Audio((0.4 * chirp + 0.02 * rng.standard_normal(samples)).astype(np.float32), 16000)


KINDS: dict[type, str] = {str: "text", Image.Image: "image", Video: "video", Audio: "audio"}


def user(*parts: str | Image.Image | Video | Audio) -> list[dict[str, Any]]:
    """One message of text and media."""

    def part(value: str | Image.Image | Video | Audio) -> dict[str, Any]:
        kind = next(kind for type_, kind in KINDS.items() if isinstance(value, type_))
        return {"type": kind, kind: value}

    return [{"role": "user", "content": [part(value) for value in parts]}]


def parts_of(messages: list[dict[str, Any]], kind: str) -> list[Any]:
    """The media of one kind, in order."""
    return [part[kind] for message in messages for part in message["content"] if part["type"] == kind]


def run_hf(model: Any, inputs: Any, features: list[Any], new_tokens: int = 32) -> Reference:
    """What a transformers model says of a prompt.

    Args:
        model: for conditional generation.
        inputs: of its forward, one prompt.
        features: of its media, in the order of the prompt, each ``[tokens, d_model]``.
        new_tokens: in the answer; ends of sequence do not end it.
    """
    import torch

    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(**inputs).logits[0].numpy()
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
    ids = inputs["input_ids"][0].numpy()
    mm_tokens = torch.cat([torch.zeros(0, model.config.get_text_config().hidden_size), *features]).numpy()
    return Reference(ids, mm_tokens, logits, answer[0, len(ids) :].numpy())
