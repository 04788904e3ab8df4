import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epdjax.cli import main
from epdjax.models.attention import AttentionKind
from epdjax.serving.attention import pallas_gpu
from epdjax.serving.attention.check import Case
from epdjax.serving.attention.speed import kernels_for, measure

ENCODE = Case("encode", rows=2, tokens=9, context=9, heads=2, kv_heads=2, head_dim=8)
PREFILL = Case("prefill", rows=1, tokens=3, context=10, heads=4, kv_heads=2, head_dim=8, block_size=4)
DECODE = dataclasses.replace(PREFILL, stage="decode", rows=3, tokens=1)
CPU = jax.devices("cpu")[0]


def test_work_is_counted() -> None:
    assert ENCODE.flops == 4 * 2 * 2 * 8 * 81
    assert PREFILL.pairs == 8 + 9 + 10
    window = dataclasses.replace(PREFILL, kind=AttentionKind(window=4))
    assert window.pairs == 12
    assert DECODE.bytes(jnp.bfloat16) == 3 * 2 * 8 * (2 * 4 + 2 * 10 * 2)
    assert window.bytes(jnp.float32) == 4 * 8 * (2 * 3 * 4 + 2 * 6 * 2)


@pytest.mark.parametrize("kernel", ["reference", "rowwise"])
@pytest.mark.parametrize("case", [ENCODE, dataclasses.replace(ENCODE, context=5), PREFILL, DECODE])
def test_what_runs_on_a_cpu_is_right(case: Case, kernel: str) -> None:
    speed = measure(case, kernel, CPU, jnp.bfloat16, repeats=1)
    assert speed.right and 0 < speed.error < 2e-2 and speed.seconds > 0


def test_kernels_of_a_cpu() -> None:
    assert kernels_for(DECODE, CPU, jnp.float32) == ["reference", "rowwise"]
    assert kernels_for(DECODE, CPU, jnp.float32, ("pallas", "ragged")) == ["reference", "pallas"]
    assert kernels_for(ENCODE, CPU, jnp.float32, ("pallas",)) == ["reference"]


def test_a_wrong_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dims = {"rows": 2, "context": 40, "heads": 4, "kv-heads": 2, "head-dim": 16, "repeats": 1, "kernels": "pallas"}
    sizes = [word for name, value in dims.items() for word in (f"--{name}", str(value))]
    assert main(["bench-attention", "decode", *sizes]) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [(row[2].strip(), row[-2].strip()) for row in table] == [("reference", "yes"), ("pallas", "yes")]

    right = pallas_gpu.reads
    with monkeypatch.context() as patch:  # one key too few
        patch.setattr(pallas_gpu, "reads", lambda *rows: (*right(*rows)[:2], right(*rows)[2] - 1))
        assert main(["bench-attention", "decode", *sizes]) == 1
    assert "| NO |" in capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr(pallas_gpu, "reads", lambda *rows: np.full((), 0).tobytes()[99])
        assert main(["bench-attention", "prefill", "decode", "--tokens", "1", *sizes]) == 1
    out = capsys.readouterr()
    assert "decode with pallas failed: index out of range" in out.err
    assert sum("| reference |" in line for line in out.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["decode", "--heads", "3", "--kv-heads", "2"], "3 heads are no multiple of 2 KV heads"),
        (["decode", "--tokens", "2"], "one token of each row, not 2"),
        (["encode", "--context", "2000"], "a unit of 1025 patches"),
        (["prefill", "--context", "8"], "a context of 8 does not hold the 512 tokens"),
        (["thinking"], "no stage thinking; known: encode, prefill, decode"),
        (["--kernels", "flash"], "no kernel flash; known: reference, cudnn, pallas, rowwise, ragged"),
        (["--dtype", "int8"], "no dtype int8"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-attention", *arguments]) == 2
    assert says in capsys.readouterr().err
