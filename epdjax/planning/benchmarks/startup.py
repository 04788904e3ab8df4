"""How long an engine takes to start, each time in a process of its own: what was traced before would be known."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of an engine.

    Attributes:
        programs: that it needs. cached: of them, those that the cache on disk had.
        seconds: from a process that has imported the library to an engine that serves.
    """

    programs: int
    cached: int
    seconds: float


def measure_start(model: Path, mesh: str, buckets: str, cache: Path, max_model_len: int | None = None) -> Start:
    """Start an engine in a new process and stop it again.

    Args:
        model: checkpoint folder.
        buckets: ``full`` or ``trimmed``.
        cache: folder of the compilation cache; an empty one for a cold start.
        max_model_len: None: the model's own, at most 8192.

    Raises:
        RuntimeError: it does not start; the message ends with what it wrote.
    """
    asked = json.dumps([str(model), mesh, buckets, str(cache), max_model_len])
    done = subprocess.run([sys.executable, "-m", __name__, asked], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"an engine on {mesh} does not start: {done.stderr[-2000:]}")
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def _start(model: str, mesh: str, buckets: str, cache: str, max_model_len: int | None) -> Start:
    from epdjax.serving.llm import LLM

    began = time.perf_counter()
    with LLM(model, mesh, buckets=buckets, compile_cache=cache, max_model_len=max_model_len) as llm:
        seconds = time.perf_counter() - began
        return Start(len(llm.deployment.programs), llm.deployment.started.cached, seconds)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_start(*json.loads(sys.argv[1])))))
