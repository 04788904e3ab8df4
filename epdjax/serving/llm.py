"""The Python API: `LLM` for scripts, `AsyncLLM` for servers. Both are thin; the engine does the work."""

import asyncio
import concurrent.futures
import itertools
import logging
import math
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from epdjax.models.media import Prompt
from epdjax.serving import status
from epdjax.serving.config import EngineConfig
from epdjax.serving.content import ContentKeys, content_keys
from epdjax.serving.deployment import build
from epdjax.serving.detokenize import Detokenizer
from epdjax.serving.engine import Engine
from epdjax.serving.errors import (
    InvalidRequest,
    Overloaded,
    PreprocessingFailed,
    RequestError,
    ServiceUnavailable,
    TooLong,
)
from epdjax.serving.fanout import Answers
from epdjax.serving.limits import ServingLimits
from epdjax.serving.live import LiveRequest, Sink
from epdjax.serving.media.resolve import resolve_messages
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams, Urgency
from epdjax.serving.programs import Progress
from epdjax.serving.role_plans import SwitchPlan, plan_switch
from epdjax.serving.slots import check_held_back
from epdjax.serving.switching import SwitchReport
from epdjax.serving.token_bytes import TokenBytes

log = logging.getLogger(__name__)

Messages = Sequence[dict[str, Any]]
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
        self._tokenizer = self.processor.tokenizer.backend_tokenizer
        self._token_bytes = TokenBytes(self._tokenizer)
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

    def resolve_media(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages with their media decoded, as this model wants them (see `resolve_messages`); slow, any thread."""
        return resolve_messages(messages, self.limits, self.processor)

    def _chat_prompt(self, messages: Messages) -> tuple[Prompt, ContentKeys]:
        """Messages, media still encoded or already pictures, to a prompt. Slow: runs off the serving threads."""
        resolved = self.resolve_media(messages)
        try:
            prompt = self.processor.prompt(resolved)
        except ValueError as error:
            raise InvalidRequest(str(error), param="messages") from error
        except Exception as error:
            log.exception("the processor failed")
            raise PreprocessingFailed(
                "the model's processor failed on this request; the server's log has more"
            ) from error
        return prompt, self._keys(prompt)

    def _keys(self, prompt: Prompt) -> ContentKeys:
        return content_keys(prompt, self.deployment.scheduling.block_size)

    def _text_prompt(self, text: str) -> tuple[Prompt, ContentKeys]:
        try:
            prompt = self.processor.encode(text)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompt") from error
        return prompt, self._keys(prompt)

    def _request(
        self,
        request_id: str | None,
        prepared: tuple[Prompt, ContentKeys],
        params: SamplingParams,
        sink: Sink,
        urgency: Urgency = URGENCY,
    ) -> LiveRequest:
        """A request for the engine; where there are several answers it is the first, and the others are its
        followers."""
        prompt, keys = prepared
        length = len(prompt.token_ids)
        if length == 0:
            raise InvalidRequest("the prompt is empty")
        room = self.max_model_len - length
        if room < 1:
            raise TooLong(
                f"the prompt has {length} tokens, which leaves no room for an answer in the context of "
                f"{self.max_model_len}; shorten it, or send fewer or smaller pictures"
            )
        max_tokens = room if params.max_tokens is None else params.max_tokens
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
                detokenizer=Detokenizer(self._tokenizer, params.stop),
                token_bytes=self._token_bytes,
                sink=sink if params.n == 1 else answers.take,
                index=index,
                priority=urgency.priority,
                timeout_s=min(urgency.timeout_s or math.inf, self.config.request_timeout_s or math.inf),
                slo_s=urgency.slo_s or self.config.slo_s,
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

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, served together.

        Args:
            messages: OpenAI-style; media parts are ``{"type": "image", "image": PIL.Image}``, ``image_url``,
                ``video_url``, ``audio_url`` or ``input_audio``.
            params: for all, or one each.
            urgency: of all of them.

        Returns:
            One output per conversation, in order.

        Raises:
            RequestError: of the first conversation that fails.
        """
        conversations = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        with concurrent.futures.ThreadPoolExecutor(self.config.preprocess_threads) as pool:
            prompts = list(pool.map(self._chat_prompt, conversations))  # type: ignore[arg-type]
        return self._serve(prompts, params, urgency)

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        urgency: Urgency = URGENCY,
    ) -> list[RequestOutput]:
        """Continue one prompt or several; no chat template is applied. See `chat`."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._serve([self._text_prompt(text) for text in texts], params, urgency)

    def _serve(
        self,
        prompts: list[tuple[Prompt, ContentKeys]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        urgency: Urgency,
    ) -> list[RequestOutput]:
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} sampling parameters")
        # No more at a time than the engine's queue takes: a long list waits here instead of being refused.
        permits = max(1, self.config.max_requests // 2)
        room = threading.Semaphore(permits)
        futures: list[concurrent.futures.Future[RequestOutput]] = []
        for prompt, some in zip(prompts, each):
            future: concurrent.futures.Future[RequestOutput] = concurrent.futures.Future()
            futures.append(future)
            taken = min(some.n, permits)
            for _ in range(taken):
                room.acquire()
            self._engine.submit(self._request(None, prompt, some, _resolve_into(future, room, taken), urgency))
        return [future.result() for future in futures]

    def shutdown(self) -> None:
        """Stop the engine and free its devices' memory."""
        self._engine.shutdown(drain=False)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _resolve_into(future: concurrent.futures.Future[RequestOutput], room: threading.Semaphore, taken: int) -> Sink:
    def sink(output: RequestOutput | RequestError) -> None:
        if isinstance(output, RequestError):
            future.set_exception(output)
        elif output.finished:
            future.set_result(output)
        else:
            return
        room.release(taken)

    return sink


class AsyncLLM(_Serving):
    """Serving from an event loop."""

    def __init__(self, model: str | Path, mesh: str = "auto", *, progress: Progress | None = None, **settings: Any):
        """See `LLM`."""
        super().__init__(model, mesh, progress=progress, **settings)
        self._draining = False
        self._threads = concurrent.futures.ThreadPoolExecutor(self.config.preprocess_threads, "epdjax-preprocess")
        self._preparing = 0

    async def generate(
        self,
        messages: Messages,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        urgency: Urgency = URGENCY,
    ) -> AsyncIterator[RequestOutput]:
        """Snapshots of the answer to `messages`, the last one finished. A slow reader gets fewer, later ones.

        Closing the iterator aborts the request and frees what it holds.

        Raises:
            RequestError: the request is refused or fails.
        """
        prompt = await self._prepare(messages)
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

    async def _prepare(self, messages: Messages) -> tuple[Prompt, ContentKeys]:
        if self._draining:
            raise ServiceUnavailable("the server is shutting down and takes no more requests")
        if self._preparing >= self.config.max_requests:
            raise Overloaded(f"{self._preparing} requests are being prepared; try again", retry_after_s=1.0)
        self._preparing += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._chat_prompt, messages)
        finally:
            self._preparing -= 1

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
        await loop.run_in_executor(None, lambda: self._engine.shutdown(drain=drain, timeout_s=timeout_s))
        self._threads.shutdown(wait=False, cancel_futures=True)


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
