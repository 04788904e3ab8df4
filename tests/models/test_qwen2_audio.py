"""Qwen2-Audio: published configs, templates, lengths of clips, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epdjax.models import config_of
from epdjax.models.families.qwen2_audio.model import Qwen2AudioConfig
from epdjax.models.families.qwen2_audio.processor import Qwen2AudioProcessor
from epdjax.models.media import LOUDEST, Audio
from tests.models.families import qwen2_audio as tiny
from tests.models.judge import clip, user

# As published: what transformers' classes say anyway is left out.
PUBLISHED: dict[str, Any] = {
    "model_type": "qwen2_audio",
    "audio_token_index": 151646,
    "audio_config": {"model_type": "qwen2_audio_encoder", "scale_embedding": False},
    "text_config": {
        "model_type": "qwen2",
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "sliding_window": 32768,
        "use_mrope": False,
        "vocab_size": 156032,
    },
}


def processor(folder: Path, seconds: int = 2, **files: Any) -> Qwen2AudioProcessor:
    """Of a checkpoint with no weights."""
    (folder / "config.json").write_text(json.dumps(tiny.hf_config(seconds)))
    tiny.write_processor_files(folder, seconds, 24, **files)
    return Qwen2AudioProcessor(folder, config_of(folder))


def test_published_config() -> None:
    config = Qwen2AudioConfig.from_hf(PUBLISHED)
    audio, text = config.audio, config.text
    assert (audio.mel_bins, audio.hidden_size, audio.num_layers, audio.window) == (128, 1280, 32, 3000)
    assert (text.hidden_size, text.num_layers, text.num_kv_heads, text.mlp_size) == (4096, 32, 32, 11008)
    assert text.qkv_bias and not text.tie_embeddings and not text.windows
    assert config.unit_sizes(8192) == (376, 750, 1500, 3000)
    assert config.unit_sizes(100) == (376, 404)
    assert config.unit_tokens(3000) == 750


def test_tokens_of_every_length(tmp_path: Path) -> None:
    made = processor(tmp_path)
    for samples in (321, 480, 481, 640, 641, 1120, 1121, 31999, 32000, 32001, 90000):
        frames = min(-(-samples // 160), 200)
        positions = (frames - 1) // 2 + 1
        expected = (positions - 2) // 2 + 1  # as transformers writes it
        item = made.prepare_audio(clip(1, samples))
        assert made.media_shape(samples) == (frames, expected)
        assert item.tokens == expected >= 1
        assert item.units[0].inputs["valid"].sum() == positions
        assert item.units[0].size == min(frames + 2, 200) <= made.config.unit_sizes(expected)[-1]


def test_templates(tmp_path: Path) -> None:
    numbered = processor(tmp_path).render([{"role": "system", "content": "Hear."}, *user(clip(1, 400), "So?")])
    assert numbered == (
        "<|im_start|>system\nHear.<|im_end|>\n"
        "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    text_alone = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": text_alone}))
    assert "Audio 1: " in Qwen2AudioProcessor(tmp_path, config_of(tmp_path)).render(user(clip(1, 400)))
    (tmp_path / "chat_template.jinja").write_text(tiny.TEMPLATE)
    own = Qwen2AudioProcessor(tmp_path, config_of(tmp_path))
    assert own.render(user(clip(1, 400)), False) == "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|><|im_end|>\n"


def test_plain_prompts(tmp_path: Path) -> None:
    made = processor(tmp_path)
    item = made.prepare_audio(clip(1, 4000))
    prompt = made.encode("<|audio_bos|><|AUDIO|><|audio_eos|>Caption it:", [item])
    assert len(prompt.mm_positions) == item.tokens == 6
    with pytest.raises(ValueError, match=r"0 '<\|AUDIO\|>' placeholders for 1"):
        made.encode("Caption it:", [item])


@pytest.mark.parametrize(
    ("audio", "complaint"),
    [
        (Audio(np.zeros(0, np.float32), 16000), "0 samples is too short"),
        (Audio(np.zeros(320, np.float32), 16000), r"needs at least 321 \(20 ms\)"),
        (Audio(np.zeros(4000, np.float32), 44100), "takes 16000: resample"),
        (Audio(np.zeros((4000, 2), np.float32), 16000), "one channel"),
        (Audio(np.full(4000, np.nan, np.float32), 16000), "not numbers"),
        (Audio(np.full(4000, 1e300), 16000), "not numbers"),
        (Audio(np.full(4000, 1e37, np.float32), 16000), "far beyond full scale"),
    ],
)
def test_clips_that_are_refused(audio: Audio, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor(tmp_path).prepare_audio(audio)


@pytest.mark.parametrize("loudest", [0.0, 1e-45, 1e-30, 1.0, LOUDEST])
def test_features_of_finite_samples_are_finite(loudest: float, tmp_path: Path) -> None:
    sound = np.where(np.arange(4000) % 7 < 3, loudest, -loudest).astype(np.float32)
    mel_fb = processor(tmp_path).prepare_audio(Audio(sound, 16000)).units[0].inputs["mel"]
    assert np.isfinite(mel_fb).all() and np.abs(mel_fb).max() < 10


def test_silence_is_a_clip(tmp_path: Path) -> None:
    mel = processor(tmp_path).prepare_audio(Audio(np.zeros(4000, np.float32), 16000)).units[0].inputs["mel"]
    np.testing.assert_array_equal(mel, np.full((27, 24), -1.5, np.float32))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"audio_config": {"model_type": "whisper"}}, "audio_config.model_type is 'whisper'"),
        ({"audio_config": {"encoder_attention_heads": 7}}, "encoder_attention_heads 7 does not divide d_model 1280"),
        ({"audio_config": {"activation_function": "swish2"}}, "unknown activation 'swish2'"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Qwen2AudioConfig.from_hf(PUBLISHED | changes)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"chunk_length": 30}, "30 s makes 3000 frames; the encoder takes 200"),
        ({"feature_size": 80}, "feature_size is 80, but audio_config.num_mel_bins is 24"),
        ({"do_normalize": True}, "do_normalize is True"),
    ],
)
def test_feature_extractors_that_are_refused(settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    processor(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=complaint):
        Qwen2AudioProcessor(tmp_path, config_of(tmp_path))


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    processor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.hf_config() | {"audio_token_index": 7}))
    with pytest.raises(ValueError, match="audio_token_index is 7"):
        Qwen2AudioProcessor(tmp_path, config_of(tmp_path))
