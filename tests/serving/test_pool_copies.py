"""Steps on a CPU change their pools in place, as they do on a GPU (`test_hlo`)."""

import re
from dataclasses import replace
from pathlib import Path

from tests.serving.deployments import BUCKETS, make_llm


def test_no_step_copies_a_pool(checkpoint: Path) -> None:
    """Not even one that writes a single token, which XLA takes for another operation."""
    buckets = replace(BUCKETS, decode_rows=(1, 2), prefill=((1, 64),), prefill_pages=(16,))
    with make_llm(checkpoint, "1EPD", buckets=buckets, kv_blocks=100) as llm:
        (instance,) = llm.deployment.instances.values()
        pool = "f32[" + ",".join(map(str, instance.pools[0].shape)) + "]"
        for key, program in instance.programs.items():
            if key[0] in ("decode", "prefill"):
                text = program.as_text()
                assert pool in text
                assert re.findall(rf"= {re.escape(pool)}\S* copy\(", text) == [], key
