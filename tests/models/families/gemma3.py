"""Tiny Gemma 3 checkpoints, and what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from epdjax.models.processing.pictures import like_torchvision
from tests.models.families.reference import Reference
from tests.models.judge import picture, run_hf, user
from tests.models.tiny import random_checkpoint, tiny_tokenizer, write_files

MODEL_TYPE = "gemma3"

HUB_NAMES = [(r"^vision_tower\.", "vision_tower.vision_model.")]

SPECIALS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "windows": {},
    "pan and scan, untied, biases, pictures longer than the window": {
        "pan_and_scan": True,
        "image_size": 35,
        "tokens": 25,
        "tied": False,
        "text": {
            "attention_bias": True,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 48,
            "head_dim": 20,
            "query_pre_attn_scalar": 33,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_hidden_layers": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    },
    # As published: everything that is as in transformers' Gemma3TextConfig is left out.
    "sparse config": {
        "text": {
            "model_type": "gemma3_text",
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 7,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 16,
        },
        "sparse": True,
    },
}


def hf_config(
    text: dict[str, Any] | None = None,
    tied: bool = True,
    image_size: int = 28,
    tokens: int = 4,
    sparse: bool = False,
    **_: Any,
) -> dict[str, Any]:
    """``config.json`` of a variant."""
    tokenizer = tiny_tokenizer(SPECIALS)
    full = {
        "model_type": "gemma3_text",
        "vocab_size": 304,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": tokens,
        "boi_token_index": tokenizer.token_to_id("<start_of_image>"),
        "eoi_token_index": tokenizer.token_to_id("<end_of_image>"),
        "image_token_index": tokenizer.token_to_id("<image_soft_token>"),
        "eos_token_id": [tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<end_of_turn>")],
        **({} if sparse else {"tie_word_embeddings": tied}),
        "text_config": (text or {}) if sparse else full | (text or {}),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": 7,
            "vision_use_head": False,
        },
    }


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """As published: transformers 4 has a period for the layers' kinds, and other names for the rotary embeddings."""
    text = dict(config["text_config"])
    ropes = text.pop("rope_parameters")
    del text["layer_types"]
    text["sliding_window_pattern"] = 3
    text["rope_theta"] = ropes["full_attention"]["rope_theta"]
    text["rope_scaling"] = {name: ropes["full_attention"][name] for name in ("rope_type", "factor")}
    text["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    return config | {"text_config": text}


def make(folder: Path, pan_and_scan: bool | None = None, **variant: Any) -> None:
    """A complete checkpoint folder."""
    config = hf_config(**variant)
    random_checkpoint(folder, config, seed=5)
    tokenizer = tiny_tokenizer(SPECIALS)
    bos = [("<bos>", tokenizer.token_to_id("<bos>"))]
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=bos)
    tokenizer.save(str(folder / "tokenizer.json"))
    side = config["vision_config"]["image_size"]
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "extra_special_tokens": {
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
        },
        "processor_config.json": {
            "image_seq_length": config["mm_tokens_per_image"],
            "processor_class": "Gemma3Processor",
        },
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": pan_and_scan,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "pan_and_scan_max_num_crops": 3 if pan_and_scan else None,
            "pan_and_scan_min_crop_size": 8 if pan_and_scan else None,
            "pan_and_scan_min_ratio_to_activate": None,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        },
    }
    write_files(folder, files, CHAT_TEMPLATE)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """What is asked of every variant."""
    wide, square = picture(1, 50, 30), picture(2, 24, 24)
    return {
        "text": user("Say what you think, then."),
        "one picture": user("Look at ", wide, " and name it."),
        "two pictures": user(square, "Compare with ", wide),
        "picture twice": user(square, "the same again ", square),
    }


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """What transformers makes of a conversation."""
    import torch
    from transformers import AutoTokenizer, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    processor = Gemma3Processor(
        like_torchvision(Gemma3ImageProcessorPil).from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
        image_seq_length=json.loads((folder / "config.json").read_text())["mm_tokens_per_image"],
    )
    given = {key: value for key, value in settings.items() if "pan_and_scan" in key and value is not None}
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=given,
    )
    model = Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    features = []
    if "pixel_values" in inputs:
        with torch.no_grad():
            features = [model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)]
    return run_hf(model, inputs, features)
