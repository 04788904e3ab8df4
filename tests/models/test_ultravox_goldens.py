"""Ultravox against outputs of its authors' code (see ``tests/goldens/README.md``)."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from epdjax.models import config_of, load_model
from epdjax.models.families.ultravox.keys import ULTRAVOX_KEYS
from epdjax.models.families.ultravox.model import UltravoxConfig, UltravoxProjector
from epdjax.models.families.ultravox.processor import UltravoxProcessor
from epdjax.models.lmm import LMM
from epdjax.models.media import Audio, EncodeUnit, Prompt
from epdjax.models.processing.log_mel import LogMel
from tests.models import dense
from tests.models.authors_outputs import check_answer, check_export
from tests.models.families import ultravox as tiny

GOLDENS = Path(__file__).parent.parent / "goldens" / "ultravox"
EXPECTED = dict(np.load(GOLDENS / "model" / "io.npz"))
SAMPLES = np.load(GOLDENS / "audio.npz")
COUNTS = json.loads((GOLDENS / "audio_tokens.json").read_text())
HF_CONFIG = json.loads((GOLDENS / "model" / "config.json").read_text())
SPECIALS = {504: "<|begin_of_text|>", 505: "<|start_header_id|>", 506: "<|end_header_id|>", 507: "<|eot_id|>"}


def sound(name: str) -> Audio:
    return Audio(SAMPLES[f"{name}_samples"].astype(np.float32) / 32768, 16000)


def silence(samples: int) -> Audio:
    return Audio(np.zeros(samples, np.float32), 16000)


def make(folder: Path, later: bool, **audio: Any) -> Path:
    """The golden model; the reference's later code ran it too, without a norm in the middle."""
    folder.mkdir(exist_ok=True)
    changes = {"audio_config": HF_CONFIG["audio_config"] | audio} | ({"projector_ln_mid": False} if later else {})
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes))
    shutil.copyfile(GOLDENS / "model" / "model.safetensors", folder / "model.safetensors")
    tiny.write_processor_files(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> Tokenizer:
    """The one that the golden prompts were written with: ids are bytes, and `SPECIALS`."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    vocabulary = {letters.get(i, f"unused{i}"): i for i in range(504)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SPECIALS[i], special=True, normalized=False) for i in sorted(SPECIALS)])
    return tokenizer


@dataclasses.dataclass
class Golden:
    """The golden model in one generation's rules."""

    folder: Path
    model: LMM
    processor: UltravoxProcessor

    def prompt(self, case: str, monkeypatch: pytest.MonkeyPatch) -> Prompt:
        """A golden prompt as text, and its clips, through the processor."""
        if case == "c":  # its sound is not there, its log-mel frames are
            monkeypatch.setattr(LogMel, "__call__", lambda self, samples: EXPECTED["c_mel"].T)
            items = [self.processor.prepare_audio(silence(913 * 160))]
        else:
            items = [self.processor.prepare_audio(sound(name)) for name in case]
        return self.processor.encode(text_of(case), items)


def text_of(case: str) -> str:
    """The prompt with placeholders: windows of one clip follow one another, clips have something between them."""
    ids = EXPECTED[f"{case}_input_ids"].tolist()
    pieces, end = [], 0
    for start, count in zip(EXPECTED[f"{case}_audio_token_start_idx"], EXPECTED[f"{case}_audio_token_len"]):
        if start > end or not pieces:
            pieces.append("".join(SPECIALS.get(i) or chr(i) for i in ids[end:start]))
        end = start + count
    return "<|audio|>".join([*pieces, "".join(SPECIALS.get(i) or chr(i) for i in ids[end:])])


@pytest.fixture(scope="module", params=["v0.3", "later"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = make(tmp_path_factory.mktemp("golden"), request.param == "later")
    model: LMM = load_model(folder)  # type: ignore[assignment]
    return Golden(folder, model, UltravoxProcessor(folder, model.config))


def cases(golden: Golden) -> tuple[str, ...]:
    return ("a", "b", "c", "ab") if golden.model.config.later else ("a", "b")


def test_prompts_and_positions(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in cases(golden):
        prompt = golden.prompt(case, monkeypatch)
        starts, counts = EXPECTED[f"{case}_audio_token_start_idx"], EXPECTED[f"{case}_audio_token_len"]
        assert prompt.token_ids.tolist() == EXPECTED[f"{case}_input_ids"].tolist(), case
        assert [unit.tokens for item in prompt.media for unit in item.units] == counts.tolist()
        expected = [i for start, count in zip(starts, counts) for i in range(start, start + count)]
        assert prompt.mm_positions.tolist() == expected
        monkeypatch.undo()


def test_log_mel(golden: Golden) -> None:
    """The reference's frames came from torch, whose arithmetic differs by this much."""

    def frames(unit: EncodeUnit, expected: str) -> None:
        mel = unit.inputs["mel"].T
        np.testing.assert_allclose(mel, EXPECTED[expected][:, : unit.size], rtol=0, atol=5e-5)

    a, b = (golden.processor.prepare_audio(sound(name)) for name in "ab")
    frames(a.units[0], "a_mel")
    frames(b.units[0], "b_mel")
    if golden.model.config.later:
        both = golden.processor.layout(Prompt(np.zeros(0, np.int32), np.zeros(0, np.int32), (a, b)))
        frames(both.media[0].units[0], "ab_mel_0")
        frames(both.media[1].units[0], "b_mel")
    short = SAMPLES["short_mel_later" if golden.model.config.later else "short_mel"]
    made = golden.processor.prepare_audio(sound("short")).units[0].inputs["mel"].T
    np.testing.assert_allclose(made, short[:, : made.shape[1]], rtol=0, atol=5e-5)


def features(model: LMM, unit: EncodeUnit, size: int) -> np.ndarray:
    inputs = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in model.config.unit_inputs(size).items()}
    for name, array in unit.inputs.items():
        inputs[name][(0, *(slice(n) for n in array.shape))] = array
    tower = model.encoder.tower
    return np.asarray(tower.final_norm(tower(inputs["mel"], inputs["frames"], inputs["valid"])))[0]


def test_encoder(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    later = golden.model.config.later
    whole = {"a": [(0, "a_encoder_last_hidden_state")], "b": [(0, "b_encoder_last_hidden_state")]}
    if later:
        whole["c"] = [(0, "c_encoder_last_hidden_state_0"), (1, "c_encoder_last_hidden_state_1")]
        whole["ab"] = [(0, "ab_encoder_last_hidden_state_0")]
    for case, units in whole.items():
        made = [unit for item in golden.prompt(case, monkeypatch).media for unit in item.units]
        for index, name in units:
            expected, kept = EXPECTED[name], made[index].inputs["kept"].sum()
            assert kept == len(expected)
            ours = features(golden.model, made[index], 800)[:kept]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
        monkeypatch.undo()


@pytest.mark.parametrize("size", [400, 800])
def test_mm_tokens_in_every_bucket(golden: Golden, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert golden.model.config.unit_sizes(1000) == (100, 200, 400, 800)
    for case in cases(golden):
        prompt = golden.prompt(case, monkeypatch)
        units = [unit for item in prompt.media for unit in item.units]
        made = [dense.encode_unit(golden.model, unit, size if unit.size <= size else None) for unit in units]
        np.testing.assert_allclose(np.concatenate(made), EXPECTED[f"{case}_audio_embeds"], rtol=0, atol=2e-5)
        monkeypatch.undo()


def test_logits_and_greedy(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in cases(golden):
        prompt = golden.prompt(case, monkeypatch)
        logits = dense.logits(golden.model, prompt)
        np.testing.assert_allclose(logits, EXPECTED[f"{case}_logits"], rtol=0, atol=1e-4)
        check_answer(golden.model, prompt, EXPECTED[f"{case}_greedy_ids"], EXPECTED[f"{case}_greedy_logits"], atol=1e-4)
        monkeypatch.undo()


def test_export_writes_the_same_tensors(golden: Golden, tmp_path: Path) -> None:
    check_export(golden.model, golden.folder, tmp_path)


def test_projector_with_a_norm_in_the_middle() -> None:
    folder = GOLDENS / "ln_mid"
    config = UltravoxConfig.from_hf(json.loads((folder / "config.json").read_text()))
    assert config.later and config.norm_mid
    module = UltravoxProjector(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    tensors, io, state = load_file(folder / "model.safetensors"), np.load(folder / "io.npz"), {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        name, transform = ULTRAVOX_KEYS.source("encoder", ".".join(("projector", *map(str, path))), config)
        state[path] = variable.replace(jnp.asarray(transform.load(tensors[name], variable.shape, config)))
    nnx.update(module, nnx.from_flat_state(state))
    for name in ("", "_exact"):
        np.testing.assert_allclose(module(jnp.asarray(io[f"features{name}"])), io[f"output{name}"], rtol=0, atol=2e-5)


# ---- processing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
def test_token_counts(later: bool, tmp_path: Path) -> None:
    folder = make(tmp_path, later, max_source_positions=1500)
    processor = UltravoxProcessor(folder, config_of(folder))
    for case in COUNTS["lengths"]:
        samples, expected = case["samples"], case["later" if later else "v0_3"]
        shape = processor.media_shape(samples)
        if later:
            assert [frames for frames, _ in shape] == expected["audio_lens"]
            assert [tokens for _, tokens in shape] == expected["audio_token_len"]
            # The reference's counts of frames and tokens are what the encoder is given.
            if samples <= 2720:
                (unit,) = processor.prepare_audio(silence(samples)).units
                assert (unit.size, unit.tokens) == shape[0]
        elif "error" in expected:
            with pytest.raises(ValueError, match="too short: this model needs at least 201"):
                processor.prepare_audio(silence(samples))
        elif not expected["encoder_accepts"]:
            with pytest.raises(ValueError, match="takes 30 s at most"):
                processor.prepare_audio(silence(samples))
        else:
            assert shape == ((expected["mel_frames"], expected["audio_token_len"]),)
