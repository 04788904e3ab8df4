"""Tiny LLaVA checkpoints, and what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from epdjax.models.processing.pictures import like_torchvision
from tests.models.families.reference import Reference
from tests.models.judge import picture, run_hf, user
from tests.models.tiny import random_checkpoint, tiny_tokenizer, write_files

MODEL_TYPE = "llava"

HUB_NAMES = [(r"^vision_tower\.", "vision_tower.vision_model.")]

SPECIALS = ("<s>", "</s>", "<pad>", "<image>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

CLIP = {"model_type": "clip_vision_model", "projection_dim": 24}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "CLIP and Llama": {},
    "several layers, class token kept, no biases, tied": {
        "config": {
            "vision_feature_layer": [-2, 1, 0],
            "vision_feature_select_strategy": "full",
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
        "text": {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "rms_norm_eps": 1e-5},
        "vision": {"image_size": 24, "hidden_act": "gelu"},
        "image_processor": "LlavaImageProcessor",
    },
    "SigLIP and Qwen2": {
        "config": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        "text": {"model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": False},
        "vision": SIGLIP,
        "image_processor": "SiglipImageProcessor",
    },
    "Mistral with a window": {
        "config": {"vision_feature_layer": -1},
        "text": {"model_type": "mistral", "sliding_window": 13, "head_dim": 24},
    },
}


def hf_config(
    config: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """``config.json`` of a variant."""
    tokenizer = tiny_tokenizer(SPECIALS)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": tokenizer.token_to_id("<image>"),
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 304,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "eos_token_id": tokenizer.token_to_id("</s>"),
            **(text or {}),
        },
        "vision_config": {
            **CLIP,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            **(vision or {}),
        },
        **(config or {}),
    }


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """As published: what is as in transformers' own classes is left out."""
    text = {name: value for name, value in config["text_config"].items() if name != "rms_norm_eps"}
    return config | {"text_config": text}


def make(folder: Path, image_processor: str = "CLIPImageProcessor", **variant: Any) -> None:
    """A complete checkpoint folder."""
    config = hf_config(**variant)
    random_checkpoint(folder, config, seed=7)
    write_processor_files(folder, config, image_processor)


def write_processor_files(folder: Path, config: dict[str, Any], image_processor: str) -> None:
    """Tokenizer, template and image processor settings."""
    tokenizer = tiny_tokenizer(SPECIALS)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    vision = config["vision_config"]
    side, clip = vision["image_size"], vision["model_type"] == "clip_vision_model"
    square = {"height": side, "width": side}
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "extra_special_tokens": {"image_token": "<image>"},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision["patch_size"],
            "num_additional_image_tokens": int(clip),
            "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "default"),
            "image_token": "<image>",
        },
        "preprocessor_config.json": {
            "image_processor_type": image_processor,
            "crop_size": square,
            "do_center_crop": image_processor != "SiglipImageProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": image_processor == "LlavaImageProcessor",
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": square if image_processor == "SiglipImageProcessor" else {"shortest_edge": side},
        },
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
    }


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """What transformers makes of a conversation."""
    import torch
    import transformers
    from transformers import AutoTokenizer, LlavaForConditionalGeneration
    from transformers.models.llava.processing_llava import LlavaProcessor

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    given = json.loads((folder / "processor_config.json").read_text())
    processor = LlavaProcessor(
        like_torchvision(getattr(transformers, settings["image_processor_type"] + "Pil")).from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
        patch_size=given["patch_size"],
        num_additional_image_tokens=given["num_additional_image_tokens"],
        vision_feature_select_strategy=given["vision_feature_select_strategy"],
    )
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    features = []
    if "pixel_values" in inputs:
        with torch.no_grad():
            features = list(model.get_image_features(inputs["pixel_values"]).pooler_output)
    return run_hf(model, inputs, features)
