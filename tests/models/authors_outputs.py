"""Checks of a model against recorded outputs of its authors' code."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from epdjax.models import export_hf
from epdjax.models.media import Prompt
from tests.models import dense


def check_answer(model: Any, prompt: Prompt, ids: np.ndarray, greedy_logits: np.ndarray, atol: float) -> None:
    """The greedy answer is `ids`, and told that answer the model gives `greedy_logits` ``[tokens, vocab]``."""
    assert dense.greedy(model, prompt, len(ids)) == ids.tolist()
    told = dataclasses.replace(prompt, token_ids=np.append(prompt.token_ids, ids[:-1]).astype(np.int32))
    logits = dense.logits(model, told)[len(prompt.token_ids) - 1 :]
    np.testing.assert_allclose(logits, greedy_logits, rtol=0, atol=atol)


def check_export(model: Any, folder: Path, again: Path) -> None:
    """A model loaded from `folder` and exported to `again` has the same tensors under the same names."""
    export_hf(model, json.loads((folder / "config.json").read_text()), again)
    theirs, ours = (load_file(some / "model.safetensors") for some in (folder, again))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
