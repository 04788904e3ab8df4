"""The shortest decode step of a live engine: where the device is quicker than Python, Python sets the pace."""

import dataclasses
import gc
import statistics
from pathlib import Path

from epdjax.planning.benchmarks.overhead import PROMPT, _run
from epdjax.serving.config import EngineConfig
from epdjax.serving.llm import LLM

TOKENS = 64  # of an answer


def engine_step_s(config: EngineConfig, checkpoint: Path, dtype: str, repeats: int) -> float:
    """Median seconds from token to token of a single short answer, on the deployment as it serves.

    Args:
        config: of the engine. checkpoint: that it serves. dtype: of weights and pools.
        repeats: answers, after one that is not timed.

    Returns:
        0 where contexts are too short to see more than a few steps.

    Raises:
        ValueError: the deployment cannot be built.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings |= {"model": checkpoint, "dtype": dtype, "role_switching": "off"}
    with LLM(**settings) as llm:
        tokens = min(TOKENS, llm.max_model_len - PROMPT)
        if tokens < TOKENS // 4:
            return 0.0
        runs = [_run(llm, 1, tokens, seed) for seed in range(1 + repeats)]
    del llm
    gc.collect()  # its memory is wanted
    return statistics.median(seconds / steps for seconds, steps in runs[1:])
