"""The Python API: `LLM` for scripts, `AsyncLLM` for servers. Both are thin; the engine does the work."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from epdjax.serving import status
from epdjax.serving.batch import Batch, Load, Room
from epdjax.serving.errors import RequestError, ServiceUnavailable
from epdjax.serving.frontend import URGENCY, Frontend
from epdjax.serving.media.parts import TextBounds
from epdjax.serving.outputs import RequestOutput
from epdjax.serving.params import SamplingParams, Urgency
from epdjax.serving.preparing import Messages, Prepared
from epdjax.serving.programs import Progress


class LLM(Frontend):
    """Offline inference.

    ``LLM("folder", mesh="1E1P1D").chat([{"role": "user", "content": "hello"}])``
    """

    def __init__(self, model: str | Path, mesh: str = "auto", *, progress: Progress | None = None, **settings: Any):
        """See `Frontend`."""
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
            messages: one conversation, which is a list of messages, or any number of them. OpenAI-style; media parts
                are ``{"type": "image", "image": PIL.Image}``, ``image_url``,
                ``video_url``, ``audio_url`` or ``input_audio``.
            params: for all, or one each.
            urgency: of all of them.
            raise_errors: raise the first error instead of returning errors among the outputs.

        Returns:
            One output per conversation, in order; of a list, a `RequestError` in the place of one that failed.

        Raises:
            RequestError: the one conversation fails, or with `raise_errors` any.
        """
        if isinstance(messages, Sequence) and messages and isinstance(messages[0], Mapping):
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
        items: Iterable[Any],
        prepare: Callable[[Any], Prepared],
        params: SamplingParams | Sequence[SamplingParams] | None,
        urgency: Urgency,
        *,
        raise_errors: bool,
    ) -> list[RequestOutput | RequestError]:
        items = list(items)
        each = list(params) if isinstance(params, Sequence) else [params] * len(items)
        each = [SamplingParams() if some is None else some for some in each]
        wrong = next((some for some in each if not isinstance(some, SamplingParams)), None)
        if wrong is not None:
            raise TypeError(f"params must be SamplingParams, or one for each prompt, not {type(wrong).__name__}")
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


class AsyncLLM(Frontend):
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
