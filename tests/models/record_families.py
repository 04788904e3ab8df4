"""Record what transformers says of every family's conversations, for the tests that have to do without torch.

``python -m tests.models.record_families [model_type ...]`` writes ``tests/goldens/families/<model_type>.npz``: of the
first variant's conversations the token ids, the logits behind the prompt, the answer, and a part of each MM token.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.models.families import all_families

GOLDENS = Path(__file__).parent.parent / "goldens" / "families"
WIDTH = 4  # values recorded of each MM token


def record(model_type: str) -> None:
    """Write one family's file."""
    module = all_families()[model_type]
    variant = next(iter(module.VARIANTS.values()))
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        module.make(Path(folder), **variant)
        for name, messages in module.conversations().items():
            reference = module.reference(Path(folder), messages)
            arrays |= {
                f"{name}/token_ids": np.asarray(reference.token_ids, np.int32),
                f"{name}/mm_tokens": np.asarray(reference.mm_tokens, np.float32)[:, :WIDTH],
                f"{name}/logits": np.asarray(reference.logits, np.float32)[-1],
                f"{name}/greedy": np.asarray(reference.greedy, np.int32),
            }
    GOLDENS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDENS / f"{model_type}.npz", **arrays)


if __name__ == "__main__":
    judged = [name for name, module in all_families().items() if hasattr(module, "reference")]
    for name in sys.argv[1:] or judged:
        record(name)
        print(f"recorded {name}")
