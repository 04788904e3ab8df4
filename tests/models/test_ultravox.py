"""Ultravox: prompts, what is refused, base models, and clips that need more than one window."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from epdjax.models import config_of, load_model
from epdjax.models.checkpoint import CheckpointError
from epdjax.models.families.ultravox import merge
from epdjax.models.families.ultravox.model import UltravoxConfig
from epdjax.models.families.ultravox.processor import UltravoxProcessor
from epdjax.models.lmm import LMM
from epdjax.models.media import Audio
from tests.models import dense
from tests.models.families import ultravox as tiny
from tests.models.judge import clip, user
from tests.models.serving_families import answers


def silence(samples: int) -> Audio:
    return Audio(np.zeros(samples, np.float32), 16000)


def processor(folder: Path) -> UltravoxProcessor:
    """Of a checkpoint with no weights."""
    (folder / "config.json").write_text(json.dumps(tiny.hf_config()))
    tiny.write_processor_files(folder)
    return UltravoxProcessor(folder, config_of(folder))


def test_user_turns(tmp_path: Path) -> None:
    made = processor(tmp_path)

    def turn(*parts: Any) -> str:
        text = made.render(user(*parts), add_generation_prompt=False)
        return text.removeprefix("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n")

    some = silence(400)
    assert turn(some) == "<|audio|><|eot_id|>"  # the reference's default
    assert turn("Listen.", some) == "Listen. <|audio|><|eot_id|>"  # as it writes a clip that the text does not place
    assert turn(some, "What is it?") == "<|audio|> What is it?<|eot_id|>"
    assert turn("One:\n", some, some) == "One:\n<|audio|> <|audio|><|eot_id|>"


def test_ends_of_turns_are_not_clips(tmp_path: Path) -> None:
    made = processor(tmp_path)
    messages = [*user(silence(6000)), {"role": "assistant", "content": "A hum."}, *user("And", silence(3000), "this?")]
    prompt = made.prompt(messages)
    ends = np.flatnonzero(prompt.token_ids == made.mm_token_id)
    assert len(prompt.mm_positions) == 3 + 2 and len(ends) == 3 + 2 + 3
    assert set(prompt.mm_positions) < set(ends)
    assert made.mm_token_id in made.eos_token_ids
    with pytest.raises(ValueError, match="stands for media"):
        made.prompt(user("Stop.<|eot_id|>"))
    with pytest.raises(ValueError, match=r"1 '<\|audio\|>' placeholders for 0"):
        made.encode("<|audio|>")
    alone = made.encode("<|audio|>", [made.prepare_audio(silence(3000))])
    assert alone.token_ids[alone.mm_positions].tolist() == [made.mm_token_id] * 2


@pytest.mark.parametrize(
    ("audio", "complaint"),
    [
        (silence(0), "0 samples is too short"),
        (Audio(np.zeros(1000, np.float32), 8000), "takes 16000: resample"),
        (Audio(np.zeros((2, 1000), np.float32), 16000), "one channel"),
        (Audio(np.full(1000, np.inf, np.float32), 16000), "not numbers"),
        (Audio(np.full(1000, 1e300), 16000), "not numbers"),
        (Audio(np.full(1000, 1e37, np.float32), 16000), "far beyond full scale"),
    ],
)
def test_clips_that_are_refused(audio: Audio, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor(tmp_path).prepare_audio(audio)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"projector_act": "gelu"}, "projector_act is 'gelu'"),
        ({"audio_latency_block_size": 100}, "audio_latency_block_size is 100"),
        ({"audio_config": {"model_type": "wav2vec2"}}, "audio_config.model_type is 'wav2vec2'"),
        ({"text_config": {"model_type": "gemma2"}}, "text_config.model_type is 'gemma2'"),
        ({"hidden_size": 161}, "hidden_size is 161"),
        ({"audio_model_id": "some/whisper"}, "audio_model_id 'some/whisper'.*ultravox.merge"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        UltravoxConfig.from_hf(tiny.hf_config() | changes)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"feature_size": 128}, "feature_size is 128"),
        ({"dither": 0.1}, "dither is 0.1"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "SeamlessM4T"),
    ],
)
def test_feature_extractors_that_are_refused(settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=complaint):
        processor(tmp_path)


# ---- base models and the engine -------------------------------------------------------------------------------------


def apart(whole: Path, folder: Path) -> tuple[Path, Path, Path]:
    """A checkpoint as published: the projector, and the folders of its base models."""
    config, tensors = json.loads((whole / "config.json").read_text()), load_file(whole / "model.safetensors")
    ultravox, audio, text = (folder / name for name in ("ultravox", "whisper", "llama"))
    renamed = {
        ultravox: ("multi_modal_projector.", "multi_modal_projector."),
        audio: ("audio_tower.", "model.encoder."),
        text: ("language_model.", ""),
    }
    for path, (ours, theirs) in renamed.items():
        path.mkdir()
        held = {theirs + name.removeprefix(ours): x for name, x in tensors.items() if name.startswith(ours)}
        if path == audio:
            held["model.decoder.layer_norm.weight"] = np.ones(3, np.float32)
        save_file(held, path / "model.safetensors")
    (audio / "config.json").write_text(json.dumps(config.pop("audio_config")))
    (text / "config.json").write_text(json.dumps(config.pop("text_config")))
    (text / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 259]}))
    named = {"audio_model_id": "openai/whisper-small", "text_model_id": "meta-llama/Meta-Llama-3.1-8B-Instruct"}
    (ultravox / "config.json").write_text(json.dumps(config | named))
    tiny.write_processor_files(ultravox)
    return ultravox, audio, text


def test_base_models_are_merged(tmp_path: Path) -> None:
    tiny.make(tmp_path / "whole")
    parts, merged = apart(tmp_path / "whole", tmp_path), tmp_path / "merged"
    with pytest.raises(ValueError, match="holds the projector alone"):
        load_model(parts[0])
    merge.main([str(path) for path in (*parts, merged)])
    whole, ours = (nnx.split(load_model(folder))[1] for folder in (tmp_path / "whole", merged))
    jax.tree.map(np.testing.assert_array_equal, ours, whole)
    assert UltravoxProcessor(merged, config_of(merged)).eos_token_ids >= {258, 259}
    with pytest.raises(ValueError, match="not empty"):
        merge.merge(*parts, merged)
    (parts[1] / "model.safetensors").write_bytes((parts[2] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"audio_tower\.conv1\.weight"):
        merge.merge(*parts, tmp_path / "wrong", shard_bytes=10_000)


def test_two_windows_and_a_short_clip_through_the_engine(tmp_path: Path) -> None:
    tiny.make(tmp_path)
    model: LMM = load_model(tmp_path)  # type: ignore[assignment]
    messages = user(clip(5, 50001), "And", clip(6, 7000), "there?")
    prompt = UltravoxProcessor(tmp_path, config_of(tmp_path)).prompt(messages)
    assert [len(item.units) for item in prompt.media] == [2, 1]
    given = answers(tmp_path, "1E1P1D", {"clips": messages})["clips"]
    assert given == dense.greedy(model, prompt, len(given))
