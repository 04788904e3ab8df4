"""The one place where an instance gets its attention: a kernel per role, chosen when the instance is built.

The rules say what a kernel can do. On a device that is there, a chosen kernel is also tried: one that raises, or does
not agree with the reference, is not used.
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from epdjax.mesh.sharding import Submesh
from epdjax.models.attention import AttentionKind, UnitAttend
from epdjax.models.text_config import TextConfig
from epdjax.serving.attention.binding import attached, capability, pages_attend, platform_of, unit_attend
from epdjax.serving.attention.check import Case, check
from epdjax.serving.attention.rules import REFERENCE, STAGES, Choice, Need, choose
from epdjax.serving.paged import PagesAttend

log = logging.getLogger(__name__)

PLAIN = (REFERENCE, "rowwise")  # of XLA's own operations: no need to try them on the device


@dataclasses.dataclass(frozen=True)
class Attention:
    """How an instance attends.

    Attributes:
        choices: role -> the kernel it uses.
        units: what its encoder calls.
        pages: role (``P``, ``D``) -> what the decoder calls for the pages of its rows.
    """

    choices: dict[str, Choice]
    units: UnitAttend
    pages: dict[str, PagesAttend]

    @classmethod
    def of(cls, wanted: str, roles: str, submesh: Submesh, model: Any, dtype: Any, block_size: int) -> "Attention":
        """Choose.

        Args:
            wanted: see `EngineConfig.attention`.
            model: the model's config.
            dtype: of weights and pools.
            block_size: tokens of a page.
        """
        choices = {}
        for role in roles:
            needed = need(STAGES[role], submesh, model, dtype)
            choice = choose(needed, wanted)
            if choice.kernel not in PLAIN and attached(submesh.devices[0]):
                choice = tried(choice, *trials(needed, model.text, block_size), dtype=needed.dtype)
            choices[role] = choice
        return cls(
            choices,
            unit_attend(choices["E"].kernel if "E" in choices else REFERENCE, submesh.mesh),
            {role: pages_attend(choice.kernel, submesh.mesh) for role, choice in choices.items() if role != "E"},
        )

    def tell(self, instance: str) -> None:
        """Log what was chosen, and why not something faster."""
        for role, choice in self.choices.items():
            because = f" ({'; '.join(choice.refusals)})" if choice.refusals else ""
            level = logging.WARNING if choice.kernel == REFERENCE and choice.refusals else logging.INFO
            log.log(level, "%s attends in %s with %s%s", instance, STAGES[role], choice.kernel, because)


def need(stage: str, submesh: Submesh, model: Any, dtype: Any) -> Need:
    """What a stage of a model asks of a kernel on these devices."""
    device, text = submesh.devices[0], model.text
    encode = stage == "encode"
    return Need(
        stage,
        platform_of(device),
        capability(device),
        jnp.dtype(dtype).name,
        model.encoder_head_dims if encode else (text.head_dim,),
        kv_heads=1 if encode else text.num_kv_heads // submesh.mesh.shape["tensor"],
        softcap=not encode and text.attn_softcap is not None,
        bidirectional=stage == "prefill" and model.mm_bidirectional,
    )


def trials(need: Need, text: TextConfig, block_size: int) -> list[Case]:
    """Small attentions that show whether a kernel does what is needed: each width of heads, each kind of layer."""
    if need.stage == "encode":
        return [Case("encode", 2, 150, context, 2, 2, dim) for dim in need.head_dims for context in (150, 100)]
    heads = need.kv_heads * (text.num_heads // text.num_kv_heads)
    tokens = 1 if need.stage == "decode" else 40
    windows = dict.fromkeys(window and min(window, 50) for window in text.windows or (None,))
    kinds = [AttentionKind(window, text.query_scale, text.attn_softcap) for window in windows]
    return [
        Case(need.stage, 2, tokens, context, heads, need.kv_heads, text.head_dim, block_size, kind)
        for kind in kinds
        for context in (70, 600)  # in the short one a key too many shows, in the long one a row is shared by programs
    ]


@functools.lru_cache(maxsize=64)  # instances alike are tried once
def tried(choice: Choice, *cases: Case, dtype: str) -> Choice:
    """The choice if its kernel agrees with the reference in all of `cases`, on the first device; else the reference."""
    problem = None
    for case in cases:
        try:
            checked = check(case, choice.kernel, jax.local_devices()[0], dtype)
        except Exception as error:  # whatever a compiler or a driver may say: there is a reference to go on with
            first_line = (str(error) or repr(error)).splitlines()[0]
            problem = f"{choice.kernel} fails on this device: {first_line}"
            break
        if not checked.right:
            problem = f"{choice.kernel} differs from the reference by {checked.error:.1e} on this device"
            break
    return choice if problem is None else Choice(REFERENCE, (*choice.refusals, problem))
