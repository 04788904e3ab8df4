"""How fast a kernel is on this device, and how far from the reference."""

import dataclasses
import statistics
import time
from typing import Any

import jax

from epdjax.serving.attention.check import Case, check
from epdjax.serving.attention.rules import REFERENCE, RULES, choose

BATCH = 10  # calls dispatched before waiting, so that a call's dispatch hides behind the one before


@dataclasses.dataclass(frozen=True)
class Speed:
    """One kernel on one case.

    Attributes:
        seconds: median of a call.
        temporaries: bytes.
        error, right: see `epdjax.serving.attention.check.Checked`.
    """

    kernel: str
    seconds: float
    temporaries: int
    error: float
    right: bool


def kernels_for(case: Case, device: jax.Device, dtype: Any, asked: tuple[str, ...] = ()) -> list[str]:
    """The reference, and the kernels that can do the case on this device; those that are `asked` for, if any are."""
    need = case.need(device, dtype)
    here = [rule for rule in RULES if rule.platform == need.platform]
    names = [rule.kernel for rule in here if rule.kernel in asked or not (asked or rule.asked)]
    return [REFERENCE, *(name for name in dict.fromkeys(names) if choose(need, name).kernel == name)]


def measure(case: Case, kernel: str, device: jax.Device, dtype: Any, repeats: int = 5) -> Speed:
    """Time a kernel on random numbers and compare it with the reference in float32."""
    checked = check(case, kernel, device, dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([checked.program(*checked.arrays) for _ in range(BATCH)])
        seconds.append((time.perf_counter() - started) / BATCH)
    temporaries = checked.program.memory_analysis().temp_size_in_bytes
    return Speed(kernel, statistics.median(seconds), temporaries, checked.error, checked.right)
