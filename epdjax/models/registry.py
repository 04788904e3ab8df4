"""The families of models that can be served: one entry here registers a family."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from epdjax.models.decoder import LanguageModel
from epdjax.models.families.gemma3.keys import GEMMA3_KEYS
from epdjax.models.families.gemma3.model import Gemma3Config, Gemma3Encoder
from epdjax.models.families.gemma3.processor import Gemma3Processor
from epdjax.models.families.internvl.keys import INTERNVL_KEYS
from epdjax.models.families.internvl.model import InternVLConfig, InternVLEncoder
from epdjax.models.families.internvl.processor import InternVLProcessor
from epdjax.models.families.internvl_chat.keys import INTERNVL_CHAT_KEYS
from epdjax.models.families.internvl_chat.model import InternVLChatConfig
from epdjax.models.families.internvl_chat.processor import InternVLChatProcessor
from epdjax.models.families.llava.keys import LLAVA_KEYS
from epdjax.models.families.llava.model import LlavaConfig, LlavaEncoder
from epdjax.models.families.llava.processor import LlavaProcessor
from epdjax.models.families.llava_onevision.keys import LLAVA_ONEVISION_KEYS
from epdjax.models.families.llava_onevision.model import LlavaOnevisionConfig, LlavaOnevisionEncoder
from epdjax.models.families.llava_onevision.processor import LlavaOnevisionProcessor
from epdjax.models.families.minicpmv.keys import MINICPMV_KEYS
from epdjax.models.families.minicpmv.model import MiniCPMVConfig, MiniCPMVEncoder
from epdjax.models.families.minicpmv.processor import MiniCPMVProcessor
from epdjax.models.families.qwen2_audio.keys import QWEN2_AUDIO_KEYS
from epdjax.models.families.qwen2_audio.model import Qwen2AudioConfig, Qwen2AudioEncoder
from epdjax.models.families.qwen2_audio.processor import Qwen2AudioProcessor
from epdjax.models.families.qwen_vl.keys import QWEN2_5_VL_KEYS, QWEN2_VL_KEYS, QWEN3_VL_KEYS
from epdjax.models.families.qwen_vl.model import QwenVLConfig, QwenVLEncoder
from epdjax.models.families.qwen_vl.processor import Qwen2_5VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from epdjax.models.families.ultravox.keys import ULTRAVOX_KEYS
from epdjax.models.families.ultravox.model import UltravoxConfig, UltravoxEncoder
from epdjax.models.families.ultravox.processor import UltravoxProcessor
from epdjax.models.keymap import KeyMap
from epdjax.models.lmm import LMM
from epdjax.models.model_config import ModelConfig
from epdjax.models.processing.base import Processor
from epdjax.models.reading import read_json
from epdjax.models.tying import with_tie_flag


@dataclasses.dataclass(frozen=True)
class Family:
    """What has to be known of a family of models to serve it.

    Attributes:
        model_type: as ``config.json`` spells it.
        read_config: (config.json, the media processor's settings or None) to the family's `ModelConfig`; ValueError for
            what the family cannot honour.
        encoder: the module that makes MM tokens, built as ``encoder(config, dtype=, rngs=)``.
        key_map: names of the tensors in checkpoints.
        processor: built as ``processor(folder, config)``; tokenizer, chat template and media processing.
    """

    model_type: str
    read_config: Callable[[Mapping[str, Any], Mapping[str, Any] | None], Any]
    encoder: Callable[..., nnx.Module]
    key_map: KeyMap
    processor: Callable[[Path, Any], Processor]

    @property
    def parts(self) -> dict[str, Callable[..., nnx.Module]]:
        """What a role can need, each built as ``part(config, dtype=, rngs=)``."""
        return {"encoder": self.encoder, "language_model": _language_model}

    def model(self, config: Any, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> LMM:
        """All parts in one module, as attributes of the same names."""
        return LMM(self.encoder, config, dtype=jnp.dtype(dtype), rngs=rngs)


def _language_model(config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> LanguageModel:
    return LanguageModel(config.text, dtype=dtype, rngs=rngs)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="gemma3",
            read_config=Gemma3Config.from_hf,
            encoder=Gemma3Encoder,
            key_map=GEMMA3_KEYS,
            processor=Gemma3Processor,
        ),
        Family(
            model_type="internvl",
            read_config=InternVLConfig.from_hf,
            encoder=InternVLEncoder,
            key_map=INTERNVL_KEYS,
            processor=InternVLProcessor,
        ),
        Family(
            model_type="internvl_chat",
            read_config=InternVLChatConfig.from_hf,
            encoder=InternVLEncoder,
            key_map=INTERNVL_CHAT_KEYS,
            processor=InternVLChatProcessor,
        ),
        Family(
            model_type="llava",
            read_config=LlavaConfig.from_hf,
            encoder=LlavaEncoder,
            key_map=LLAVA_KEYS,
            processor=LlavaProcessor,
        ),
        Family(
            model_type="llava_onevision",
            read_config=LlavaOnevisionConfig.from_hf,
            encoder=LlavaOnevisionEncoder,
            key_map=LLAVA_ONEVISION_KEYS,
            processor=LlavaOnevisionProcessor,
        ),
        Family(
            model_type="minicpmv",
            read_config=MiniCPMVConfig.from_hf,
            encoder=MiniCPMVEncoder,
            key_map=MINICPMV_KEYS,
            processor=MiniCPMVProcessor,
        ),
        Family(
            model_type="qwen2_5_vl",
            read_config=QwenVLConfig.from_hf,
            encoder=QwenVLEncoder,
            key_map=QWEN2_5_VL_KEYS,
            processor=Qwen2_5VLProcessor,
        ),
        Family(
            model_type="qwen2_audio",
            read_config=Qwen2AudioConfig.from_hf,
            encoder=Qwen2AudioEncoder,
            key_map=QWEN2_AUDIO_KEYS,
            processor=Qwen2AudioProcessor,
        ),
        Family(
            model_type="qwen2_vl",
            read_config=QwenVLConfig.from_hf,
            encoder=QwenVLEncoder,
            key_map=QWEN2_VL_KEYS,
            processor=Qwen2VLProcessor,
        ),
        Family(
            model_type="qwen3_vl",
            read_config=QwenVLConfig.from_hf,
            encoder=QwenVLEncoder,
            key_map=QWEN3_VL_KEYS,
            processor=Qwen3VLProcessor,
        ),
        Family(
            model_type="ultravox",
            read_config=UltravoxConfig.from_hf,
            encoder=UltravoxEncoder,
            key_map=ULTRAVOX_KEYS,
            processor=UltravoxProcessor,
        ),
    )
}


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"no config.json in {folder}: expected the folder of a Hugging Face checkpoint on this machine"
        )
    config = read_json(path)
    for name in ("text_config", "vision_config", "audio_config", "llm_config"):
        if not isinstance(config.get(name) or {}, Mapping):
            raise ValueError(f"{name} in {path} is not a JSON object")
    return config


def read_preprocessor(folder: str | Path) -> dict[str, Any] | None:
    """Settings of the image processor, from where transformers 5 or 4 writes them; None if neither is there."""
    nested = Path(folder) / "processor_config.json"
    if nested.is_file() and "image_processor" in (settings := read_json(nested)):
        return settings["image_processor"]
    path = Path(folder) / "preprocessor_config.json"
    return read_json(path) if path.is_file() else None


def family_for(hf_config: Mapping[str, Any]) -> Family:
    """The family of a model whose ``config.json`` is `hf_config`.

    Raises:
        ValueError: an unknown ``model_type`` (the message lists the known ones), or a quantised checkpoint.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    text = hf_config.get("text_config") or {}
    quantisation = hf_config.get("quantization_config") or text.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unknown method")
        raise ValueError(f"this checkpoint is quantised ({method}), which is not supported: use the unquantised one")
    return FAMILIES[model_type]


def family_of(folder: str | Path) -> Family:
    """The family of the checkpoint in `folder`.

    Raises:
        ValueError: no config.json, an unknown ``model_type``, or a quantised checkpoint.
    """
    return family_for(read_hf_config(folder))


def config_of(folder: str | Path) -> Any:
    """The config of the checkpoint in `folder`, as its family reads it.

    Raises:
        ValueError: as `family_of`, or a field the family cannot honour.
    """
    hf_config, preprocessor = with_tie_flag(read_hf_config(folder), Path(folder)), read_preprocessor(folder)
    family = family_for(hf_config)
    try:
        return family.read_config(hf_config, preprocessor)
    except KeyError as error:
        raise ValueError(f"config.json in {folder} lacks {error}, which {family.model_type} needs") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"config.json or the processor settings in {folder} have a value of a kind that they cannot have: {error}"
        ) from error


def dtype_of(folder: str | Path) -> jnp.dtype:
    """The dtype that the checkpoint in `folder` says it is stored in; float32 if it does not say."""
    hf_config = read_hf_config(folder)
    text = hf_config.get("text_config") or {}
    names = (source.get(key) for source in (hf_config, text) for key in ("dtype", "torch_dtype"))
    return jnp.dtype(next((str(name) for name in names if name), "float32"))


def abstract_part(family: Family, config: Any, part: str, dtype: Any) -> nnx.Module:
    """A part without values: its parameters are ``jax.ShapeDtypeStruct`` and keep their ``logical_axes`` metadata.

    Raises:
        ValueError: the family has no such part.
    """
    if part not in family.parts:
        raise ValueError(f"{family.model_type} has no part {part!r}; parts: {', '.join(family.parts)}")
    build = family.parts[part]
    return nnx.eval_shape(lambda: build(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
