"""What `LLM` and `AsyncLLM` share: an engine, and how inputs become requests for it."""

import itertools
import math
import secrets
from pathlib import Path
from typing import Any, Literal, overload

from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import build
from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.engine import Engine
from epdjax.serving.errors import InvalidRequest, TooLong
from epdjax.serving.fanout import Answers
from epdjax.serving.limits import ServingLimits
from epdjax.serving.live import LiveRequest, Sink
from epdjax.serving.params import SamplingParams, Urgency
from epdjax.serving.preparing import Prepared, Preparer
from epdjax.serving.programs import Progress
from epdjax.serving.role_plans import SwitchPlan, plan_switch
from epdjax.serving.slots import check_held_back
from epdjax.serving.switching import SwitchReport
from epdjax.serving.token_bytes import TokenBytes

URGENCY = Urgency()


class Frontend:
    """See the module."""

    def __init__(self, model: str | Path, mesh: str = "auto", *, progress: Progress | None = None, **settings: Any):
        """
        Args:
            model: folder of a checkpoint.
            mesh: mesh spec such as ``2E1P1D``; ``auto`` picks a split for the machine.
            progress: told of each program compiled at start-up.
            settings: other fields of `EngineConfig`.

        Raises:
            ValueError: a setting, the mesh spec or the checkpoint is not right; the message says what to change.
        """
        self.config = EngineConfig(model=model, mesh=mesh, **settings)
        self.deployment = build(self.config, progress)
        self.processor = self.deployment.processor
        self._token_bytes = TokenBytes(self.deployment.decoder)
        self._preparer = Preparer(
            self.processor,
            self.limits,
            workers=self.config.preprocess_threads,
            block_size=self.deployment.scheduling.block_size,
            max_model_len=self.max_model_len,
        )
        self._engine = Engine(self.deployment)
        self._ids = itertools.count(1)

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.config.served_model_name or Path(self.config.model).resolve().name

    @property
    def limits(self) -> ServingLimits:
        return self.config.limits

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.deployment.scheduling.max_model_len

    @overload
    def switch_roles(
        self, instance: str, roles: str, *, devices: int = 1, dry_run: Literal[False] = False
    ) -> SwitchReport: ...

    @overload
    def switch_roles(self, instance: str, roles: str, *, devices: int = 1, dry_run: Literal[True]) -> SwitchPlan: ...

    def switch_roles(
        self, instance: str, roles: str, *, devices: int = 1, dry_run: bool = False
    ) -> SwitchReport | SwitchPlan:
        """Give an instance other roles while requests are served, and wait until it has them.

        Args:
            instance: its name, see `AsyncLLM.health`.
            roles: some of E, P and D. A device that is to encode joins the group of encoders, if there is one.
            devices: where `instance` is a group of encoders, how many leave it.
            dry_run: only say what would change.

        Raises:
            SwitchRefused: it cannot be done, and why; nothing has changed.
        """
        plan = plan_switch(self._engine.places, instance, roles, devices=devices, irp=self.config.irp)
        return plan if dry_run else self._engine.switch(plan).result()

    def _request(
        self,
        request_id: str | None,
        prepared: Prepared,
        params: SamplingParams,
        sink: Sink,
        urgency: Urgency = URGENCY,
    ) -> LiveRequest:
        """A request for the engine; where there are several answers it is the first, and the others are its
        followers."""
        prompt, keys = prepared.prompt, prepared.keys
        length = len(prompt.token_ids)
        if length == 0:
            raise InvalidRequest("the prompt is empty")
        room = self.max_model_len - length
        if room < 1:
            raise TooLong(
                f"the prompt has {length} tokens, which leaves no room for an answer in the context of "
                f"{self.max_model_len}; shorten it, or send fewer or smaller pictures"
            )
        most = self.config.max_output_tokens
        if most is not None and params.max_tokens is not None and params.max_tokens > most:
            raise InvalidRequest(
                f"max_tokens is {params.max_tokens} and answers here have {most} tokens at most (--max-output-tokens)",
                param="max_tokens",
            )
        max_tokens = min(room, most or room) if params.max_tokens is None else params.max_tokens
        self._check_params(params, max_tokens)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        request_id = request_id or f"request-{next(self._ids)}"
        ids = [request_id, *(f"{request_id}/{index}" for index in range(1, params.n))]
        if params.n > 1:
            answers = Answers(ids, params, sink, self._engine.abort)
        first, *followers = (
            LiveRequest.make(
                some_id,
                prompt,
                params,
                model=self.deployment.model,
                unit_sizes=self.deployment.scheduling.buckets.unit_sizes,
                keys=keys,
                max_tokens=max_tokens,
                seed=_seed32(seed, index),
                eos_token_ids=self.processor.eos_token_ids,
                detokenizer=Detokenizer(self.deployment.decoder, params.stop),
                token_bytes=self._token_bytes,
                sink=sink if params.n == 1 else answers.take,
                index=index,
                priority=urgency.priority,
                timeout_s=min(urgency.timeout_s or math.inf, self.config.request_timeout_s or math.inf),
                slo_s=urgency.slo_s or self.config.slo_s,
                client=urgency.client,
                user=urgency.user,
                answers=params.n if index == 0 else 1,
                follows="" if index == 0 else request_id,
            )
            for index, some_id in enumerate(ids)
        )
        first.followers = followers
        return first

    def _check_params(self, params: SamplingParams, max_tokens: int) -> None:
        """Refuse what this model or engine cannot do."""
        vocab = self.deployment.model.text.vocab_size
        beyond = next((token for token in params.logit_bias if token >= vocab), None)
        if beyond is not None:
            raise InvalidRequest(
                f"logit_bias names token {beyond}; the model's tokens are 0 to {vocab - 1}", param="logit_bias"
            )
        if params.min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens {params.min_tokens} is more than the context leaves, {max_tokens}", param="min_tokens"
            )
        if params.min_tokens:
            check_held_back({*params.stop_token_ids, *self.processor.eos_token_ids})
        if params.n > self.config.max_requests:
            raise InvalidRequest(
                f"n is {params.n} and the server takes {self.config.max_requests} requests at a time", param="n"
            )


def _seed32(seed: int, index: int = 0) -> int:
    """A seed of any width, for one of several answers, as an int32; all bits take part."""
    mixed = ((seed & (2**64 - 1)) * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**64 >> 32
    return mixed - 2**32 if mixed >= 2**31 else mixed
