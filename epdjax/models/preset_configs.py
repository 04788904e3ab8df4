"""The published dimensions of real checkpoints: ``config.json`` as the hub has it, fields that decide nothing left out.

Parts that several models share are written once. `parameters` is the number of parameters that the model's page on the
Hugging Face hub states for its safetensors, unless `source` says otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

HUB = "safetensors count on the model's page of the Hugging Face hub"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        hub_id: its name on the hub.
        hf_config: ``config.json``.
        parameters: how many there are, as published.
        source: who says so.
        preprocessor: what the image processor's settings decide about sizes; None: nothing.
    """

    hub_id: str
    hf_config: Mapping[str, Any]
    parameters: int
    source: str = HUB
    preprocessor: Mapping[str, Any] | None = None


def _sizes(
    hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, positions: int, **more: Any
) -> dict[str, Any]:
    """The fields that every text config has."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        **more,
    }


def _tower(hidden: int, layers: int, heads: int, mlp: int, image: int, patch: int = 14, **more: Any) -> dict[str, Any]:
    """The fields that the vision configs of plain towers have."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


def _qwen2(*sizes: int, tied: bool = False) -> dict[str, Any]:
    return _sizes(*sizes, model_type="qwen2", rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=tied)


def _internlm2(*sizes: int, factor: float) -> dict[str, Any]:
    scaling = {"type": "dynamic", "factor": factor}
    return _sizes(*sizes, model_type="internlm2", rms_norm_eps=1e-5, rope_theta=1e6, rope_scaling=scaling, bias=False)


INTERN_VIT_300M = _tower(
    1024, 24, 16, 4096, 448, norm_type="layer_norm", qk_normalization=False, qkv_bias=True, layer_norm_eps=1e-6
)
INTERN_VIT_6B = _tower(
    3200, 45, 25, 12800, 448, norm_type="rms_norm", qk_normalization=True, qkv_bias=False, layer_norm_eps=1e-6
)
SIGLIP_400M = _tower(1152, 27, 16, 4304, 980)


def _internvl2(llm: dict[str, Any], vision: dict[str, Any], template: str) -> dict[str, Any]:
    return {
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template,
        "use_thumbnail": True,
        "llm_config": llm,
        "vision_config": vision,
    }


INTERNVL3_8B = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_token_id": 151667,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
    "text_config": _qwen2(3584, 28, 28, 4, 18944, 151674, 32768),
    "vision_config": _tower(
        1024,
        24,
        16,
        4096,
        448,
        attention_bias=True,
        layer_norm_eps=1e-6,
        norm_type="layer_norm",
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        use_qk_norm=False,
    ),
}

MINICPM_V_2_6 = {
    "model_type": "minicpmv",
    "version": 2.6,
    "drop_vision_last_layer": False,
    "query_num": 64,
    "slice_config": {"max_slice_nums": 9, "patch_size": 14, "scale_resolution": 448},
    "vision_config": SIGLIP_400M,
    **{key: value for key, value in _qwen2(3584, 28, 28, 4, 18944, 151666, 32768).items() if key != "model_type"},
}


def _qwen2_5_vl(text: dict[str, Any], vision_mlp: int) -> dict[str, Any]:
    return text | {
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_mlp,
            "num_heads": 16,
            "hidden_act": "silu",
            "in_chans": 3,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }


QWEN2_5_VL_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}
QWEN3_VL_PIXELS = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}

QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "tie_word_embeddings": False,
    "text_config": _sizes(
        4096,
        36,
        32,
        8,
        12288,
        151936,
        262144,
        model_type="qwen3_vl_text",
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=5e6,
        rope_scaling={"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    ),
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


def _gemma3(text: dict[str, Any]) -> dict[str, Any]:
    common = {
        "model_type": "gemma3_text",
        "sliding_window": 1024,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    return {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "image_token_index": 262144,
        "text_config": common | text,
        "vision_config": _tower(1152, 27, 16, 4304, 896, model_type="siglip_vision_model", vision_use_head=False),
    }


LLAVA_1_5_7B = {
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": _sizes(4096, 32, 32, 32, 11008, 32064, 4096, model_type="llama", rms_norm_eps=1e-5),
    "vision_config": _tower(1024, 24, 16, 4096, 336, model_type="clip_vision_model"),
}

LLAVA_ONEVISION_7B = {
    "model_type": "llava_onevision",
    "image_token_index": 151646,
    "video_token_index": 151647,
    "projector_hidden_act": "gelu",
    "vision_aspect_ratio": "anyres_max_9",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "image_grid_pinpoints": [[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)],
    "tie_word_embeddings": False,
    "text_config": _qwen2(3584, 28, 28, 4, 18944, 152128, 32768),
    "vision_config": _tower(1152, 26, 16, 4304, 384, model_type="siglip_vision_model", vision_use_head=False),
}

QWEN2_AUDIO_7B = {
    "model_type": "qwen2_audio",
    "audio_token_index": 151646,
    "text_config": _sizes(4096, 32, 32, 32, 11008, 156032, 8192, model_type="qwen2", rms_norm_eps=1e-5, rope_theta=1e4),
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
        "max_source_positions": 1500,
    },
}

ULTRAVOX_0_3 = {
    "model_type": "ultravox",
    "audio_token_index": 128256,
    "hidden_size": 4096,
    "projector_act": "swiglu",
    "stack_factor": 8,
    "audio_config": {
        "model_type": "whisper",
        "d_model": 768,
        "encoder_layers": 12,
        "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
    "text_config": _sizes(
        4096,
        32,
        32,
        8,
        14336,
        128256,
        131072,
        model_type="llama",
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}

PRESETS: dict[str, Preset] = {
    "Gemma-3-4B": Preset(
        "google/gemma-3-4b-it",
        _gemma3({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}),
        4_300_079_472,
    ),
    "Gemma-3-27B": Preset(
        "google/gemma-3-27b-it",
        _gemma3(
            {
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "query_pre_attn_scalar": 168,
            }
        ),
        27_432_406_640,
    ),
    "InternVL2-1B": Preset(
        "OpenGVLab/InternVL2-1B",
        _internvl2(_qwen2(896, 24, 14, 2, 4864, 151655, 32768), INTERN_VIT_300M, "Hermes-2"),
        938_158_976,
    ),
    "InternVL2-8B": Preset(
        "OpenGVLab/InternVL2-8B",
        _internvl2(_internlm2(4096, 32, 32, 8, 14336, 92553, 32768, factor=2.0), INTERN_VIT_300M, "internlm2-chat"),
        8_075_365_376,
    ),
    "InternVL2-26B": Preset(
        "OpenGVLab/InternVL2-26B",
        _internvl2(_internlm2(6144, 48, 48, 8, 16384, 92553, 32768, factor=3.0), INTERN_VIT_6B, "internlm2-chat"),
        25_514_186_112,
    ),
    "InternVL3-8B": Preset("OpenGVLab/InternVL3-8B-hf", INTERNVL3_8B, 7_944_373_760),
    "LLaVA-1.5-7B": Preset("llava-hf/llava-1.5-7b-hf", LLAVA_1_5_7B, 7_063_427_072),
    "LLaVA-OneVision-7B": Preset(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        LLAVA_ONEVISION_7B,
        8_030_348_832,
        source=f"{HUB}, of lmms-lab/llava-onevision-qwen2-7b-ov, from which this was converted with 64 more tokens",
    ),
    "MiniCPM-V-2.6": Preset("openbmb/MiniCPM-V-2_6", MINICPM_V_2_6, 8_099_175_152),
    "Qwen2-Audio-7B": Preset("Qwen/Qwen2-Audio-7B-Instruct", QWEN2_AUDIO_7B, 8_397_094_912),
    "Qwen2.5-VL-3B": Preset(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        _qwen2_5_vl(_qwen2(2048, 36, 16, 2, 11008, 151936, 128000, tied=True), 3420),
        3_754_622_976,
        preprocessor=QWEN2_5_VL_PIXELS,
    ),
    "Qwen2.5-VL-7B": Preset(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        _qwen2_5_vl(_qwen2(3584, 28, 28, 4, 18944, 152064, 128000), 3420),
        8_292_166_656,
        preprocessor=QWEN2_5_VL_PIXELS,
    ),
    "Qwen2.5-VL-72B": Preset(
        "Qwen/Qwen2.5-VL-72B-Instruct",
        _qwen2_5_vl(_qwen2(8192, 80, 64, 8, 29568, 152064, 128000), 3456),
        73_410_777_344,
        preprocessor=QWEN2_5_VL_PIXELS,
    ),
    "Qwen3-VL-8B": Preset("Qwen/Qwen3-VL-8B-Instruct", QWEN3_VL_8B, 8_767_123_696, preprocessor=QWEN3_VL_PIXELS),
    "Ultravox-v0.3": Preset(
        "fixie-ai/ultravox-v0_3",
        ULTRAVOX_0_3,
        8_030_261_248 + 88_154_112 + 33_564_672,
        source="the hub holds its projector alone: the safetensors count there of Llama 3.1 8B, and by their widths "
        "the encoder of Whisper small and the projector",
    ),
}
