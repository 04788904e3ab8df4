"""Tiny LLaVA-OneVision checkpoints, and what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epdjax.models.processing.pictures import like_torchvision
from tests.models.families.reference import Reference
from tests.models.judge import parts_of, picture, run_hf, user, video
from tests.models.tiny import random_checkpoint, tiny_tokenizer, write_files

MODEL_TYPE = "llava_onevision"

HUB_NAMES = [(r"^vision_tower\.", "vision_tower.vision_model.")]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for kind in ['image', 'video'] %}"
    "{% for part in message['content'] if part['type'] == kind %}{{ '<' + kind + '>\\n' }}{% endfor %}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "whole patches": {},
    "odd grid, pictures shrunk, several layers": {
        "config": {
            "vision_aspect_ratio": "anyres_max_2",
            "vision_feature_layer": [-2, -1],
            "tie_word_embeddings": True,
        },
        "text": {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48},
        "vision": {"image_size": 38},
    },
    "CLIP and Llama": {
        "config": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        "text": {"model_type": "llama", "rms_norm_eps": 1e-5},
        "vision": {"model_type": "clip_vision_model", "image_size": 21},
    },
}


def hf_config(
    config: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """``config.json`` of a variant."""
    tokenizer = tiny_tokenizer(SPECIALS)
    made = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": tokenizer.token_to_id("<image>"),
        "video_token_index": tokenizer.token_to_id("<video>"),
        "tie_word_embeddings": False,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 304,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rope_theta": 1000000.0,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            **(text or {}),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
            **(vision or {}),
        },
        **(config or {}),
    }
    side = made["vision_config"]["image_size"]
    grids = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (4, 1))
    made["image_grid_pinpoints"] = [[rows * side, columns * side] for rows, columns in grids]
    return made


def make(folder: Path, **variant: Any) -> None:
    """A complete checkpoint folder."""
    config = hf_config(**variant)
    random_checkpoint(folder, config, seed=9)
    tiny_tokenizer(SPECIALS).save(str(folder / "tokenizer.json"))
    side = config["vision_config"]["image_size"]
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.6, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": {"image_token": "<image>", "video_token": "<video>"},
        },
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            # a CLIP tower's class token counts here, and is taken off again for the strategy "default"
            "num_image_tokens": (side // config["vision_config"]["patch_size"]) ** 2
            + (config["vision_feature_select_strategy"] == "default"),
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
            "vision_aspect_ratio": config.get("vision_aspect_ratio", "anyres_max_9"),
        },
        "preprocessor_config.json": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": config["image_grid_pinpoints"],
            **pixels,
        },
        "video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor", **pixels},
    }
    write_files(folder, files, CHAT_TEMPLATE)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """What is asked of every variant."""
    wide, tall = picture(1, 50, 30), picture(2, 20, 24)
    return {
        "text": user("Say what you think, then."),
        "one picture": user(wide, "Name it."),
        "two pictures": user(tall, wide, "Compare them."),
        "picture twice": user(tall, "The same again?", tall),
        "long picture": user(picture(3, 17, 90), "How long is it?"),
        "video": user(video(4, 3, 40, 32), "What happens?"),
        "video and picture": user(tall, video(5, 2, 20, 20), "Is it in there?"),
    }


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """What transformers makes of a conversation. Its video processor needs torchvision, so frames go through PIL."""
    import torch
    from transformers import (
        AutoTokenizer,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        SiglipImageProcessorPil,
    )
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.tokenizer = tokenizer
    processor.image_processor = like_torchvision(LlavaOnevisionImageProcessorPil).from_pretrained(folder)
    processor.image_token, processor.video_token = "<image>", "<video>"
    for name in ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio"):
        setattr(processor, name, settings[name])
    template = (folder / "chat_template.jinja").read_text()
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    inputs: dict[str, Any] = {}
    features = []
    if pictures := parts_of(messages, "image"):
        made = processor.image_processor([pictures], return_tensors="pt")
        inputs |= made
        for index in range(len(pictures)):
            text = text.replace("<image>", processor.replace_image_token(made, index).replace("<image>", "<i>"), 1)
        with torch.no_grad():
            features += list(model.get_image_features(**made).pooler_output)
    for clip in parts_of(messages, "video"):
        resizer = like_torchvision(SiglipImageProcessorPil).from_pretrained(folder)
        frames = resizer([Image.fromarray(f) for f in clip.frames])
        inputs["pixel_values_videos"] = torch.tensor(np.stack(frames["pixel_values"])[None])
        text = text.replace("<video>", processor.replace_video_token(inputs, 0))
        with torch.no_grad():
            features.append(model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0])
    inputs["input_ids"] = torch.tensor([tokenizer(text.replace("<i>", "<image>")).input_ids])
    return run_hf(model, inputs, features)
