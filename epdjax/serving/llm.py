"""The Python API: `LLM` for scripts, `AsyncLLM` for servers. Both are thin; the engine does the work."""

import asyncio
import itertools
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from epdjax.serving import status
from epdjax.serving.batch import Batch, Load, Room
from epdjax.serving.config import EngineConfig
from epdjax.serving.deployment import build
from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.engine import Engine
from epdjax.serving.errors import InvalidRequest, RequestError, ServiceUnavailable, TooLong
from epdjax.serving.fanout import Answers
from epdjax.serving.limits import ServingLimits
from epdjax.serving.live import LiveRequest, Sink
from epdjax.serving.media.parts import TextBounds
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams, Urgency
from epdjax.serving.preparing import Messages, Prepared, Preparer
from epdjax.serving.programs import Progress
from epdjax.serving.role_plans import SwitchPlan, plan_switch
from epdjax.serving.slots import check_held_back
from epdjax.serving.switching import SwitchReport
from epdjax.serving.token_bytes import TokenBytes

log = logging.getLogger(__name__)

URGENCY = Urgency()


class _Serving:
    """What both APIs share: an engine, and turning inputs into requests."""

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


class LLM(_Serving):
    """Offline inference.

    ``LLM("folder", mesh="1E1P1D").chat([{"role": "user", "content": "hello"}])``
    """

    def __init__(self, model: str | Path, mesh: str = "auto", *, progress: Progress | None = None, **settings: Any):
        """See `_Serving`."""
        super().__init__(model, mesh, progress=progress, **settings)
        # Half of what the engine's queues take: a long list waits here instead of being refused there.
        most = (self.config.max_requests, self.config.max_queued_units, self.config.max_media_bytes)
        self._room = Room(Load(*(max(1, size // 2) for size in most)))

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: Literal[True],
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput | RequestError]: ...

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput] | list[RequestOutput | RequestError]:
        """Answer one conversation or a list of them, served together.

        Conversations are prepared while earlier ones are answered, so a long list takes no more memory than a short
        one.

        Args:
            messages: OpenAI-style; media parts are ``{"type": "image", "image": PIL.Image}``, ``image_url``,
                ``video_url``, ``audio_url`` or ``input_audio``.
            params: for all, or one each.
            urgency: of all of them.
            raise_errors: raise the first error instead of returning errors among the outputs.

        Returns:
            One output per conversation, in order; of a list, a `RequestError` in the place of one that failed.

        Raises:
            RequestError: the one conversation fails, or with `raise_errors` any.
        """
        if not messages or isinstance(messages[0], Mapping):
            return self._serve([messages], self._preparer.chat, params, urgency, raise_errors=True)
        return self._serve(messages, self._preparer.chat, params, urgency, raise_errors=raise_errors)

    @overload
    def generate(
        self,
        prompts: str,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: Literal[True],
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput | RequestError]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
        *,
        raise_errors: bool = False,
    ) -> list[RequestOutput] | list[RequestOutput | RequestError]:
        """Continue one prompt or a list of them; no chat template is applied. See `chat`."""
        if isinstance(prompts, str):
            return self._serve([prompts], self._preparer.text, params, urgency, raise_errors=True)
        return self._serve(prompts, self._preparer.text, params, urgency, raise_errors=raise_errors)

    def _serve(
        self,
        items: Sequence[Any],
        prepare: Callable[[Any], Prepared],
        params: SamplingParams | Sequence[SamplingParams] | None,
        urgency: Urgency,
        *,
        raise_errors: bool,
    ) -> list[RequestOutput | RequestError]:
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(items)
        if len(each) != len(items):
            raise ValueError(f"{len(items)} prompts but {len(each)} sampling parameters")
        batch = Batch(
            lambda index: prepare(items[index]),
            lambda index, prepared, sink: self._request(None, prepared, each[index], sink, urgency),
            self._engine.submit,
            self._engine.abort,
            room=self._room,
            threads=self.config.preprocess_threads,
        )
        answers = batch.run(len(items))
        errors = (answer for answer in answers if isinstance(answer, RequestError))
        if raise_errors and (error := next(errors, None)) is not None:
            raise error
        return answers

    def shutdown(self) -> None:
        """Stop the engine and free its devices' memory."""
        self._preparer.close()
        self._engine.shutdown(drain=False)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class AsyncLLM(_Serving):
    """Serving from an event loop."""

    def __init__(self, model: str | Path, mesh: str = "auto", *, progress: Progress | None = None, **settings: Any):
        """See `LLM`."""
        super().__init__(model, mesh, progress=progress, **settings)
        self._draining = False
        self._preparer.start()

    @property
    def text_bounds(self) -> TextBounds:
        """How much text a request may have."""
        return self._preparer.bounds

    async def prepare(self, messages: Messages, client: str = "") -> Prepared:
        """Messages as a prompt, media fetched, decoded and cut, in the order in which clients share the threads.

        Raises:
            RequestError: they are refused.
        """
        if self._draining:
            raise ServiceUnavailable("the server is shutting down and takes no more requests")
        return await self._preparer.chat_async(messages, client)

    async def generate(
        self,
        messages: Messages | Prepared,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        urgency: Urgency = URGENCY,
    ) -> AsyncIterator[RequestOutput]:
        """Snapshots of the answer to messages, prepared already or not, the last one finished. A slow reader gets
        fewer, later ones.

        Closing the iterator aborts the request and frees what it holds.

        Raises:
            RequestError: the request is refused or fails.
        """
        prompt = messages if isinstance(messages, Prepared) else await self.prepare(messages)
        loop = asyncio.get_running_loop()
        mailbox = _Mailbox()

        def deliver(output: RequestOutput | RequestError) -> None:
            loop.call_soon_threadsafe(mailbox.put, output)

        request = self._request(request_id, prompt, params, deliver, urgency)
        finished, ids = False, [some.spec.request_id for some in (request, *request.followers)]
        self._engine.submit(request)
        del messages, prompt, request  # the pictures need not live as long as the answer takes
        try:
            while not finished:
                output = await mailbox.get()
                if isinstance(output, RequestError):
                    finished = True
                    raise output
                finished = output.finished
                yield output
        finally:
            if not finished:
                for some_id in ids:
                    self._engine.abort(some_id)

    def health(self) -> status.Health:
        """Whether requests are being served, and what is."""
        return status.health(self._engine, self._draining)

    def roles(self) -> dict[str, Any]:
        """Which instance does what, the load of each stage, and the switches made; for the operator."""
        return status.roles(self._engine)

    def change_roles(self, instance: str, roles: str, *, devices: int = 1, dry_run: bool = False) -> dict[str, Any]:
        """`switch_roles`, reported in plain data."""
        if dry_run:
            return status.planned(self.switch_roles(instance, roles, devices=devices, dry_run=True))
        return status.reported(self.switch_roles(instance, roles, devices=devices))

    async def shutdown(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Take no more requests; finish those there are (or, without `drain`, end them) and stop."""
        self._draining = True
        loop = asyncio.get_running_loop()
        # Whoever is still being prepared comes too late for the engine anyhow; and no decoder is waited for.
        self._preparer.close()
        await loop.run_in_executor(None, lambda: self._engine.shutdown(drain=drain, timeout_s=timeout_s))


class _Mailbox:
    """Holds the newest output only: outputs are cumulative, so a reader that stops reading costs no memory."""

    def __init__(self) -> None:
        self._newest: RequestOutput | RequestError | None = None
        self._filled = asyncio.Event()

    def put(self, output: RequestOutput | RequestError) -> None:
        self._newest = output
        self._filled.set()

    async def get(self) -> RequestOutput | RequestError:
        await self._filled.wait()
        self._filled.clear()
        assert self._newest is not None
        return self._newest
