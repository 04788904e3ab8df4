"""The kernels in real steps, compiled for chips that are not there: they compile, and what they should not do, they do
not. That they compute the right thing on those chips is not shown here; nothing has run on one."""

import os

import pytest

from epdjax.mesh.targets import target_devices
from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.registry import FAMILIES
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.footprint import shaped_instance
from epdjax.serving.instance import Instance
from epdjax.serving.programs import jobs_of
from tests.models.tiny import tiny_hf_config

pytestmark = pytest.mark.deviceless

LAYERS, HEADS, KV_HEADS, KV_BLOCKS = 2, 16, 4, 4096
UNITS, PATCHES, TOKENS, PAGES, ROWS = 4, 1025, 512, 512, 12
CONTEXT = PAGES * 16
BUCKETS = Buckets(
    units=(UNITS,),
    prefill=((1, TOKENS),),
    prefill_pages=(PAGES,),
    decode_rows=(ROWS,),
    decode_pages=(PAGES,),
    move_blocks=(PAGES,),
)


def instance(
    chip: str, roles: str, *, tensor: int = 1, attention: str = "auto", head_dim: int = 64, **text: object
) -> Instance:
    """An instance of the widths of a 1B model with 448-pixel tiles, whose parameters are shapes."""
    hf = tiny_hf_config(num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS, tied=False)
    hf["text_config"] |= {"hidden_size": 1024, "head_dim": head_dim, "intermediate_size": 4096, "vocab_size": 32000}
    hf["text_config"] |= {"max_position_embeddings": CONTEXT} | text
    hf["vision_config"] |= {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": HEADS}
    hf["vision_config"] |= {"image_size": [448, 448], "patch_size": [14, 14]}
    engine = EngineConfig(model="shapes only", buckets=BUCKETS, mm_blocks=256, attention=attention)
    config = InternVLConfig.from_hf(hf)
    return shaped_instance(
        FAMILIES["internvl"], config, roles, target_devices(chip, tensor), engine, kv_blocks=KV_BLOCKS
    )


def compiled(one: Instance, step: str) -> tuple[str, int]:
    """Optimised HLO of its only program for a step, and bytes of temporaries on each device."""
    (job,) = (job for job in jobs_of(one, [one]) if job.key[0] == step)
    program = job.compile()
    return program.as_text(), program.memory_analysis().temp_size_in_bytes


def calls(hlo: str, name: str) -> int:
    """How often custom calls of a name occur."""
    return sum("custom-call(" in line and name in line for line in hlo.splitlines())


@pytest.mark.parametrize("tensor", [1, 2])
def test_encode_on_a_gpu(tensor: int) -> None:
    one = instance("h100-80g", "E", tensor=tensor)
    assert one.attention.choices["E"].kernel == "cudnn"
    hlo, temporaries = compiled(one, "encode")
    assert calls(hlo, "__cudnn$fmha") == one.model.vision.num_layers
    assert temporaries < UNITS * HEADS * PATCHES**2 * 2  # one layer's scores, in bfloat16
    assert "all-gather" not in hlo


@pytest.mark.parametrize(("attention", "call"), [("auto", "__cudnn$fmha"), ("pallas", "paged_attention")])
@pytest.mark.parametrize("tensor", [1, 2])
def test_prefill_on_a_gpu(attention: str, call: str, tensor: int) -> None:
    one = instance("h100-80g", "P", attention=attention, tensor=tensor)
    hlo, temporaries = compiled(one, "prefill")
    assert calls(hlo, call) == LAYERS
    assert temporaries < HEADS // tensor * TOKENS * CONTEXT * 2


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_decode_on_a_gpu(head_dim: int, tensor: int) -> None:
    one = instance("h100-80g", "D", head_dim=head_dim, tensor=tensor)
    assert one.attention.choices["D"].kernel == "pallas"
    hlo, temporaries = compiled(one, "decode")
    assert calls(hlo, "paged_attention") == LAYERS
    assert temporaries < ROWS * CONTEXT * KV_HEADS // tensor * head_dim * 2  # a layer's keys, gathered


def test_triton_really_compiles() -> None:
    """What does not fit a multiprocessor's shared memory is refused: the compiler went all the way."""
    import functools

    import jax
    import jax.numpy as jnp

    from epdjax.serving.attention import pallas_gpu

    sharding = jax.sharding.SingleDeviceSharding(target_devices("a100-80g", 1)[0])

    def shape(dims: tuple[int, ...], dtype: object = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    def lower(head_dim: int) -> jax.stages.Lowered:
        attend = jax.jit(functools.partial(pallas_gpu.paged_attention, scale=1.0))
        arrays = shape((1, 128, 1, head_dim)), shape((9, 16, 2, head_dim)), shape((1, 8), jnp.int32)
        return attend.lower(*arrays, shape((1, 128), jnp.int32), shape((1, 128), jnp.int32))

    lower(256).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="Shared memory size limit exceeded"):
        lower(2048).compile()


@pytest.mark.parametrize(("chip", "tensor"), [("v5e", 1), ("v6e", 2)])
@pytest.mark.parametrize(("roles", "step"), [("P", "prefill"), ("D", "decode")])
def test_pages_on_a_tpu(chip: str, tensor: int, roles: str, step: str) -> None:
    """JAX's ragged kernel, and no pool is copied: the temporaries are smaller than that of one layer."""
    pytest.importorskip("libtpu", reason="compiling for a TPU takes libtpu, which comes with the tpu extra")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    pool = (KV_BLOCKS + 1) * 16 * 2 * KV_HEADS * 128 * 2
    one = instance(chip, roles, head_dim=128, tensor=tensor)
    assert one.attention.choices[roles].kernel == "ragged"
    hlo, temporaries = compiled(one, step)
    assert calls(hlo, "ragged_paged_attention") == LAYERS
    assert temporaries < pool // tensor
