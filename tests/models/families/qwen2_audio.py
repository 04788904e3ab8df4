"""Tiny Qwen2-Audio checkpoints, and what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

from tests.models.families.reference import Reference
from tests.models.judge import clip, parts_of, run_hf, user
from tests.models.tiny import VOCAB_ROWS, random_checkpoint, tiny_tokenizer

MODEL_TYPE = "qwen2_audio"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")

# What the modules are called in memory; some tools write those names.
HUB_NAMES = [
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(audio_tower|multi_modal_projector)\.", r"model.\1."),
]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if 'audio' in part or 'audio_url' in part %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "two seconds": {},
    "odd sizes, one key head, template of its own": {
        "seconds": 1,
        "bins": 20,
        "width": 36,
        "audio_heads": 3,
        "num_kv_heads": 1,
        "activation": "relu",
        "chat_template": TEMPLATE,
        "settings_nested": True,
    },
}


def hf_config(
    seconds: int = 2,
    bins: int = 24,
    width: int = 32,
    audio_heads: int = 4,
    num_kv_heads: int = 2,
    activation: str = "gelu",
) -> dict[str, Any]:
    """``config.json``; `seconds`: of the encoder's window."""
    tokenizer = tiny_tokenizer(SPECIALS)
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "audio_token_index": tokenizer.token_to_id("<|AUDIO|>"),
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": bins,
            "encoder_layers": 2,
            "encoder_attention_heads": audio_heads,
            "encoder_ffn_dim": 48,
            "d_model": width,
            "activation_function": activation,
            "max_source_positions": 50 * seconds,
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": VOCAB_ROWS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": num_kv_heads,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
    }


def write_processor_files(
    folder: Path, seconds: int, bins: int, chat_template: str | None = None, settings_nested: bool = False
) -> None:
    """Tokenizer, template and feature extractor settings; nested: where transformers 5 writes them."""
    tiny_tokenizer(SPECIALS).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": seconds,
        "feature_size": bins,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": seconds * 16000,
        "nb_max_frames": seconds * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }
    if settings_nested:
        nested = {"processor_class": "Qwen2AudioProcessor", "feature_extractor": settings}
        (folder / "processor_config.json").write_text(json.dumps(nested))
    else:
        (folder / "preprocessor_config.json").write_text(
            json.dumps(settings | {"processor_class": "Qwen2AudioProcessor"})
        )
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)


def make(folder: Path, chat_template: str | None = None, settings_nested: bool = False, **variant: Any) -> None:
    """A complete checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(**variant)
    random_checkpoint(folder, config, seed=3)
    audio = config["audio_config"]
    seconds = audio["max_source_positions"] // 50
    write_processor_files(folder, seconds, audio["num_mel_bins"], chat_template, settings_nested)


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Of every kind that the family takes."""
    short, odd, long = clip(1, 4321), clip(2, 13007), clip(3, 35000)
    return {
        "text": user("What is a sound?"),
        "clip": user(odd, "What is in it?"),
        "two clips": user("First: ", odd, "Second: ", short, "Compare."),
        "clip twice": user(short, short, "The same?"),
        "clip longer than the window": user(long, "And now?"),
        "two tokens": user(clip(4, 1000)),
        "turns": [
            *user(short, "What is it?"),
            {"role": "assistant", "content": [{"type": "text", "text": "A tone."}]},
            *user(odd, "And this?"),
        ],
    }


def reference(folder: Path, messages: list[dict[str, Any]]) -> Reference:
    """transformers' model on its own processor's prompt and features."""
    import torch
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    processor = Qwen2AudioProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    clips = [audio.samples for audio in parts_of(messages, "audio")]
    inputs = processor(text=text, audio=clips or None, sampling_rate=16000, return_tensors="pt")
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    features = []
    if clips:
        caught: list[torch.Tensor] = []
        hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, out: caught.append(out))
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        counts = inputs["feature_attention_mask"].sum(-1).tolist()
        features = [out[: (n + 1) // 4] for out, n in zip(caught[0], counts, strict=True)]
    return run_hf(model, inputs, features)
