"""What moving KV from prefill to decode instances costs, and how much of it anybody waits for."""

import dataclasses
import statistics
import time

import numpy as np

from epdjax.serving.llm import LLM
from epdjax.serving.memory import block_bytes
from epdjax.serving.params import SamplingParams


@dataclasses.dataclass(frozen=True)
class MoveCost:
    """KV moves of prompts of one length.

    Attributes:
        tokens: of a prompt.
        at_once: prompts that came together.
        moves, sequences: how many.
        bytes: of KV moved, padding not counted. early: share of it that moved before its prompt was done.
        seconds: of a move, on average. exposed_s: that a sequence waited for KV after its prefill, on average.
        all_s: median time until all of them had two tokens.
    """

    tokens: int
    at_once: int
    moves: int
    sequences: int
    bytes: int
    early: float
    seconds: float
    exposed_s: float
    all_s: float


def measure(llm: LLM, words: int, at_once: int = 1, repeats: int = 5) -> MoveCost:
    """Prompts of so many words, none seen before, `at_once` at a time.

    Raises:
        ValueError: the engine moves no KV: an instance decodes what it prefills.
    """
    moves = llm._engine.scheduler.moves
    sender = next((i for i in llm.deployment.instances.values() if i.roles in ("P", "EP")), None)
    if sender is None:
        raise ValueError(f"no KV is moved on {llm.deployment.spec}; name a mesh with P apart from D, such as 1E1P1D")
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    rng, seconds = np.random.default_rng(0), []
    for repeat in range(1 + repeats):
        if repeat == 1:  # the first is to warm up
            before = dataclasses.replace(moves.stats)
        asked = [[{"role": "user", "content": _text(rng, words)}] for _ in range(at_once)]
        began = time.perf_counter()
        outputs = llm.chat(asked, params, raise_errors=True)
        seconds.append(time.perf_counter() - began)
    done = moves.stats
    blocks, count = done.blocks - before.blocks, done.moves - before.moves
    sequences = done.sequences - before.sequences
    return MoveCost(
        tokens=outputs[0].prompt_tokens,
        at_once=at_once,
        moves=count,
        sequences=sequences,
        bytes=blocks * block_bytes(sender),
        early=(done.early_blocks - before.early_blocks) / blocks,
        seconds=(done.seconds - before.seconds) / count,
        exposed_s=(done.exposed_s - before.exposed_s) / sequences,
        all_s=statistics.median(seconds[1:]),
    )


def _text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(["where", "what", "circle", "square", "red", "blue", "left", "right"], words))
