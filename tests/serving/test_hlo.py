"""The compiled steps, read as optimised HLO for an H100 that is not there: no copy of weights, none of the pool."""

import re

import jax
import jax.numpy as jnp
import pytest

from epdjax.mesh.targets import target_devices
from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.registry import FAMILIES
from epdjax.serving.buckets import Buckets
from epdjax.serving.config import EngineConfig
from epdjax.serving.footprint import shaped_instance
from epdjax.serving.instance import Instance
from epdjax.serving.programs import Job, jobs_of
from tests.models.tiny import tiny_hf_config

pytestmark = pytest.mark.deviceless

LAYERS, KV_BLOCKS = 4, 4096
ROWS, PAGES, KV_HEADS, HEAD_DIM, VOCAB = 12, 40, 4, 64, 32000
CONTEXT = ROWS * PAGES * 16 * KV_HEADS * HEAD_DIM  # keys, or values, that a decode step gathers, elements
LOGITS = ROWS * VOCAB
BUCKETS = Buckets(
    units=(4,),
    prefill=((1, 512),),
    prefill_pages=(PAGES,),
    decode_rows=(ROWS,),
    decode_pages=(PAGES,),
    move_blocks=(PAGES,),
)


def h100_instance(roles: str, tensor: int = 1) -> Instance:
    """An instance whose parameters are shapes on H100s that are not there; widths as in a 1B model."""
    hf = tiny_hf_config(num_layers=LAYERS, num_heads=16, num_kv_heads=KV_HEADS, tied=False)
    hf["text_config"] |= {"hidden_size": 1024, "head_dim": HEAD_DIM, "intermediate_size": 4096, "vocab_size": VOCAB}
    hf["vision_config"] |= {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    hf["vision_config"] |= {"image_size": [448, 448], "patch_size": [14, 14]}
    config = InternVLConfig.from_hf(hf)
    engine = EngineConfig(model="shapes only", buckets=BUCKETS, mm_blocks=256)
    devices = target_devices("h100-80g", tensor)
    return shaped_instance(FAMILIES["internvl"], config, roles, devices, engine, kv_blocks=KV_BLOCKS)


def jobs_beside_others(instance: Instance) -> list[Job]:
    """Its programs in a deployment that has an instance of each stage besides."""
    return jobs_of(instance, [instance, *(h100_instance(role) for role in "EPD")])


def compiled_text(instance: Instance, step: str) -> str:
    job = next(job for job in jobs_beside_others(instance) if job.key[0] == step)
    return job.compile().as_text()


def copies(hlo: str, elements: int) -> list[str]:
    """Instructions that write a copy, a slice or another layout of at least `elements` elements.

    Inside fusions too: that is how XLA:GPU writes a layer's slice of a stacked array. What a step gathers from the pool
    (the context of its rows) and its logits are not copies of weights; they are told by their size.
    """
    found = []
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\]", line)
        if not match:
            continue
        name, dims = match.groups()
        size = 1
        for dim in dims.split(","):
            size *= int(dim) if dim else 1
        moves = re.search(r"\b(copy|copy-start|transpose|dynamic-slice|slice|concatenate)\(", line)
        fused = re.search(r"fusion\(", line) and re.match(
            r"(loop_)?(copy|transpose|dynamic.slice|slice|concatenate)", name
        )
        if size >= elements and size not in (CONTEXT, 2 * CONTEXT, LOGITS) and (moves or fused):
            found.append(line.strip()[:200])
    return found


@pytest.mark.parametrize(("roles", "step", "tensor"), [("D", "decode", 1), ("P", "prefill", 1)])
def test_a_step_copies_neither_weights_nor_pool(roles: str, step: str, tensor: int) -> None:
    instance = h100_instance(roles, tensor)
    hlo = compiled_text(instance, step)
    smallest_weight = 1024 * KV_HEADS * HEAD_DIM // tensor  # one layer's k_proj, the smallest matrix
    if step == "prefill":  # activations of 512 tokens are larger than small weights; the pool is larger than both
        smallest_weight = (KV_BLOCKS + 1) * 16 * 8 * 64 // tensor
    assert copies(hlo, smallest_weight) == []


@pytest.mark.parametrize(("roles", "step"), [("D", "decode"), ("P", "prefill"), ("D", "land_kv"), ("P", "land_mm")])
def test_pools_are_aliased(roles: str, step: str) -> None:
    """The compiler agreed to every donation: each pool's input buffer is its output buffer."""
    instance = h100_instance(roles)
    job = next(job for job in jobs_beside_others(instance) if job.key[0] == step)
    analysis = job.compile().memory_analysis()
    rows, d = instance.mm_shape
    pool = (KV_BLOCKS + 1) * 16 * 8 * 64 * 2 * LAYERS if step != "land_mm" else rows * d * 2
    assert analysis.alias_size_in_bytes >= pool
    assert analysis.temp_size_in_bytes < pool / 2


@pytest.mark.parametrize(("roles", "tensor"), [("EPD", 1), ("E", 1), ("P", 2), ("D", 4)])
def test_every_program_compiles_for_a_gpu(roles: str, tensor: int) -> None:
    """All steps at the widths of a 1B model with 448-pixel tiles, and none needs more than a share of the device."""
    instance = h100_instance(roles, tensor)
    for job in jobs_beside_others(instance):
        assert job.compile().memory_analysis().temp_size_in_bytes < 2 * 2**30, job.label


def test_the_copy_finder_finds_copies() -> None:
    """A layer loop written as a scan over stacked weights does copy them, and the finder must see it."""
    device = target_devices("h100-80g", 1)[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def stacked(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    args = [
        jax.ShapeDtypeStruct((16, 1024), jnp.bfloat16, sharding=sharding),
        jax.ShapeDtypeStruct((4, 1024, 1024), jnp.bfloat16, sharding=sharding),
    ]
    assert copies(jax.jit(stacked).lower(*args).compile().as_text(), 1024 * 1024)
