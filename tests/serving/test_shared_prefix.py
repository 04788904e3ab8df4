"""Conversations that begin with the same text share its KV, whether a picture follows or not, in every family."""

from pathlib import Path
from types import ModuleType

import pytest

from epdjax import LLM, SamplingParams
from tests.models.families import gemma3, internvl, qwen2_vl, qwen3_vl
from tests.models.judge import picture, user
from tests.models.serving_families import CONTEXT, small_buckets

BLOCK = 16
WORDS = "the cat in the hat, and a long story that it tells of the other cat, which had no hat at all. "


@pytest.mark.slow
@pytest.mark.parametrize("module", [gemma3, internvl, qwen2_vl, qwen3_vl], ids=lambda module: module.MODEL_TYPE)
def test_text_and_the_same_text_with_a_picture(module: ModuleType, tmp_path: Path) -> None:
    module.make(tmp_path, **next(iter(module.VARIANTS.values())))
    alone, before_it = user(WORDS), user(WORDS, picture(1, 24, 24), "what is this?")
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with LLM(tmp_path, "1EPD", buckets=small_buckets(tmp_path), max_model_len=CONTEXT, block_size=BLOCK) as llm:
        ids = [llm.processor.prompt(said).token_ids.tolist() for said in (alone, before_it)]
        common = next(i for i, (one, other) in enumerate(zip(*ids)) if one != other)
        assert common > 2 * BLOCK
        first = [llm.chat(said, params)[0] for said in (alone, before_it)]
        assert [out.cached_tokens for out in first] == [0, common // BLOCK * BLOCK]
        for ledger in llm._engine.scheduler.instances.values():
            for pool in ledger.pools.values():
                pool.forget()
        second = [llm.chat(said, params)[0] for said in (before_it, alone)]
        assert [out.cached_tokens for out in second] == [0, common // BLOCK * BLOCK]
        tokens = [[out.outputs[0].token_ids for out in outputs] for outputs in (first, second[::-1])]
        assert tokens[0] == tokens[1], "whoever came first"
