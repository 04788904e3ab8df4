"""Put an Ultravox checkpoint and the models that it builds on into one folder that can be loaded.

Published checkpoints hold the projector alone, and what else was trained; ``config.json`` names the Whisper and the
language model that the rest comes from. ``python -m epdjax.models.families.ultravox.merge ULTRAVOX WHISPER LLAMA NEW``
takes the folders of all three.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from epdjax.models.checkpoint import INDEX, Tensors, check
from epdjax.models.registry import config_of, family_of, read_hf_config

SHARD_BYTES = 5 * 10**9


def merge(ultravox: Path, audio: Path, text: Path, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `folder`: weights of all three, one ``config.json``, tokenizer and settings.

    Args:
        ultravox: the checkpoint; its tensors go before those of the others.
        audio: a Whisper model, of which the encoder is taken.
        text: the language model.
        folder: made; must be empty if it is there.
        shard_bytes: of weights in one file.

    Raises:
        ValueError: a folder lacks its ``config.json``, `folder` holds something, or the models do not fit together
            (`CheckpointError`, listing what is missing or of another shape).
    """
    config = read_hf_config(ultravox)
    for part, base in (("audio", audio), ("text", text)):
        config[f"{part}_config"] = read_hf_config(base) | (config.get(f"{part}_config") or {})
        config[f"{part}_model_id"] = None
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _copy_settings(ultravox, audio, text, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(_shards(_tensors(ultravox, audio, text), shard_bytes), start=1):
        file = f"model-{i:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2), encoding="utf-8")
    family = family_of(folder)
    check(family, config_of(folder), Tensors(folder, family.key_map.canonical))


def _tensors(ultravox: Path, audio: Path, text: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and data of every tensor, each once."""
    own = Tensors(ultravox)
    for name in own.shapes:
        yield name, own.read(name)
    whisper = Tensors(audio, lambda name: name.removeprefix("model."))
    for name in whisper.shapes:
        ours = f"audio_tower.{name.removeprefix('encoder.')}"
        if name.startswith("encoder.") and ours not in own.shapes:
            yield ours, whisper.read(name)
    llama = Tensors(text)
    for name in llama.shapes:
        if (ours := f"language_model.{name}") not in own.shapes:
            yield ours, llama.read(name)


def _shards(tensors: Iterator[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _copy_settings(ultravox: Path, audio: Path, text: Path, folder: Path) -> None:
    """Tokenizer, templates and settings, from the first folder that has them; no weights and no code."""
    wanted: Sequence[tuple[Path, str]] = (
        (ultravox, "*.json"),
        (ultravox, "*.jinja"),
        (text, "generation_config.json"),
        (text, "tokenizer*.json"),
        (text, "*.jinja"),
        (audio, "preprocessor_config.json"),
    )
    for source, pattern in wanted:
        for path in sorted(source.glob(pattern)):
            if path.name not in ("config.json", INDEX) and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of this module."""
    parser = argparse.ArgumentParser(description="Put an Ultravox checkpoint and its base models into one folder.")
    fields: dict[str, Any] = {
        "ultravox": "folder of the Ultravox checkpoint",
        "audio": "folder of the Whisper model that its config.json names as audio_model_id",
        "text": "folder of the language model that it names as text_model_id",
        "folder": "new folder to write",
    }
    for field, explained in fields.items():
        parser.add_argument(field, type=Path, help=explained)
    merge(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
