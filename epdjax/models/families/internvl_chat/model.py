"""InternVL2 and 2.5 as their authors publish them (``model_type: internvl_chat``).

The same encoder as `epdjax.models.families.internvl`, under other names and with the pieces of a checkpoint described
in other words: tiling and conversation are in ``config.json``, the language model (InternLM2 or Qwen2) in its
``llm_config``. Reference: the ``InternVLChatModel`` of the InternVL repository.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from epdjax.models.families.internvl.model import IMAGENET_MEAN, IMAGENET_STD, InternVLConfig
from epdjax.models.text_config import TextConfig
from epdjax.models.vit import VisionConfig

TEXT_KINDS = ("internlm2", "llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How many tiles a picture becomes: from `least` to `most`, and a thumbnail where there are several."""

    least: int = 1
    most: int = 12
    thumbnail: bool = True


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation as text: every message is ``<|im_start|>role``, a newline, its words and `separator`."""

    system: str
    separator: str


_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
CONVERSATIONS: dict[str, Conversation] = {
    "internlm2-chat": Conversation(_INTERNVL2, "<|im_end|>"),
    "Hermes-2": Conversation(_INTERNVL2, "<|im_end|>"),
    "internvl2_5": Conversation(_INTERNVL2_5, "<|im_end|>\n"),
}
"""By the name that ``config.json`` has under ``template``."""


@dataclasses.dataclass(frozen=True)
class InternVLChatConfig(InternVLConfig):
    """An ``internvl_chat`` model; what it adds to `InternVLConfig` concerns tiles, words and names.

    Attributes:
        tiling: of pictures. The frames of a video are one tile each.
        conversation: None: the tokenizer's own chat template.
        text_kind: ``model_type`` of the language model, which decides what its tensors are called.
    """

    tiling: Tiling = Tiling()
    conversation: Conversation | None = None
    text_kind: str = "internlm2"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> "InternVLChatConfig":
        """Read config.json (and preprocessor_config.json, for the normalisation) of a checkpoint folder.

        Raises:
            ValueError: a field that this model cannot honour, named.
        """
        if (version := config.get("ps_version", "v1")) != "v2":
            raise ValueError(f"ps_version is {version!r}; supported: v2 (the pixel shuffle of InternVL 1.5 and later)")
        text = config["llm_config"]
        if (kind := text.get("model_type")) not in TEXT_KINDS:
            raise ValueError(f"llm_config.model_type is {kind!r}; supported: {', '.join(TEXT_KINDS)}")
        template = config.get("template")
        if template is not None and template not in CONVERSATIONS:
            raise ValueError(f"template is {template!r}; supported: {', '.join(CONVERSATIONS)}")
        vision = VisionConfig.from_hf(_vision(config.get("vision_config") or {}))
        if (side := config.get("force_image_size") or vision.image_size) != vision.image_size:
            raise ValueError(
                f"force_image_size is {side} and vision_config.image_size {vision.image_size}; position tables of "
                "another size are not supported: both must be the same"
            )
        ratio = config.get("downsample_ratio", 0.5)
        if vision.grid % round(1 / ratio):
            raise ValueError(f"a tile has {vision.grid} patches a side, which downsample_ratio {ratio} does not divide")
        preprocessor = preprocessor or {}
        return cls(
            vision=vision,
            # The head is a tensor of its own in every size, whatever llm_config says.
            text=TextConfig.from_hf(text, tie_embeddings=bool(config.get("tie_word_embeddings", False))),
            downsample_ratio=ratio,
            projector_act="gelu",
            feature_layer=config.get("select_layer", -1),
            image_token_id=-1,  # only the tokenizer knows
            image_mean=tuple(preprocessor.get("image_mean") or IMAGENET_MEAN),
            image_std=tuple(preprocessor.get("image_std") or IMAGENET_STD),
            tiling=_tiling(config),
            conversation=None if template is None else CONVERSATIONS[template],
            text_kind=kind,
        )


def _tiling(config: Mapping[str, Any]) -> Tiling:
    if not config.get("dynamic_image_size", False):
        return Tiling(1, 1, False)
    least, most = config.get("min_dynamic_patch", 1), config.get("max_dynamic_patch", 6)
    if not 1 <= least <= most:
        raise ValueError(f"min_dynamic_patch is {least} and max_dynamic_patch {most}: no number of tiles is between")
    return Tiling(least, most, config.get("use_thumbnail", False))


# What the reference's ``InternVisionConfig`` assumes of fields left out, and what transformers calls the fields.
_VISION_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "qk_normalization": True,
    "qkv_bias": False,
}


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    config = _VISION_DEFAULTS | dict(config)
    return config | {
        "use_qk_norm": config["qk_normalization"],
        "attention_bias": config["qkv_bias"],
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,  # transformers' way to say that no norm follows the last layer
    }
