"""From messages to a prompt: off the threads that serve, and bounded in size, time and memory before each step.

Texts are counted before they are tokenised, media are fetched, then decoded and cut into encode units one after the
other, so that of a request's media only one is there in pixels. Fetching, decoding and texts have threads of their own:
none waits for another.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from epdjax.models.media import MediaContext, MediaItem, Prompt
from epdjax.models.processing.base import Processor
from epdjax.serving.budget import ByteBudget, Share
from epdjax.serving.content import ContentKeys, content_keys
from epdjax.serving.errors import InvalidRequest, PreprocessingFailed, RequestError
from epdjax.serving.fair_threads import FairThreads
from epdjax.serving.interpreter import FreedMemory
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.decoder_pool import DecoderPool
from epdjax.serving.media.loading import MediaLoader, fetched, is_elsewhere
from epdjax.serving.media.parts import MediaPart, TextBounds, check_text, split_messages

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
TEXT_THREADS = 3
DOWNLOAD_THREADS = 8
COPIES = {"image": 6, "video": 3, "audio": 4}
"""Times that pixels or samples are in memory at the worst moment, while they are decoded, handed over and cut: a
picture of 27 MB takes 90 MB in its decoder, then 150 MB here; a video's frames are in its decoder three times."""
MOST_PARTS = 16384  # whatever the context: looking at them takes 20 ms


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A prompt ready to be served, and the keys of what it is made of."""

    prompt: Prompt
    keys: ContentKeys


class Preparer:
    """See the module. Safe to use from any thread.

    Args:
        processor: of the model.
        workers: requests whose media are decoded and cut at a time, a process each; as many again may be slow ones.
        block_size: tokens per KV block. max_model_len: tokens of the context.
    """

    def __init__(
        self, processor: Processor, limits: ServingLimits, *, workers: int, block_size: int, max_model_len: int
    ):
        self._processor, self._limits, self._block_size = processor, limits, block_size
        self.bounds = text_bounds(processor, limits, max_model_len)
        self.decoders = DecoderPool(limits, workers)
        self._decoded = ByteBudget(limits.max_decoded_bytes, "pictures, videos and clips")
        # Large media are cut on all cores but one, which is for serving (on two cores, on one).
        self._cutting = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) - 1))
        self._freed = FreedMemory()
        self._downloaded = ByteBudget(limits.max_buffered_bytes, "downloads")
        waiting = limits.max_waiting_media
        self._texts = FairThreads("epdjax-text", TEXT_THREADS, limits.max_active_requests, "texts wait to be tokenised")
        self._downloads = FairThreads("epdjax-download", DOWNLOAD_THREADS, waiting, "downloads wait")
        self._media = FairThreads("epdjax-media", self.decoders.places, waiting, "requests' media wait to be decoded")

    def start(self) -> None:
        """Start the decoder processes ahead of the first picture."""
        self.decoders.start()

    def close(self) -> None:
        """End everything at once; what is being prepared gets an error."""
        for threads in (self._texts, self._downloads, self._media):
            threads.close()
        self.decoders.close()

    def text(self, text: str) -> Prepared:
        """A plain prompt.

        Raises:
            RequestError: says what to change.
        """
        check_text(text, self.bounds, "prompt")
        return self._made(lambda: self._processor.encode(text), "prompt")

    def chat(self, messages: Messages) -> Prepared:
        """Messages, on this thread.

        Raises:
            RequestError: says what to change.
        """
        plain, media = self._split(messages)
        deadline = time.monotonic() + self._limits.media_timeout_s
        return self._prompt(plain, [fetched(part, self._limits, deadline) for part in media])

    async def chat_async(self, messages: Messages, client: str = "") -> Prepared:
        """Messages, on threads that clients share fairly.

        Raises:
            RequestError: says what to change.
            Overloaded: too many wait already.
        """
        plain, media = self._split(messages)
        del messages
        if not media:
            return await asyncio.wrap_future(self._texts.submit(client, lambda: self._prompt(plain, [])))
        with self._downloaded.share() as held:
            if any(is_elsewhere(part) for part in media):
                deadline = time.monotonic() + self._limits.media_timeout_s
                job = self._downloads.submit(client, lambda: _fetch(media, self._limits, deadline, held))
                media = await asyncio.wrap_future(job)
            return await asyncio.wrap_future(self._media.submit(client, lambda: self._prompt(plain, media)))

    def _split(self, messages: Messages) -> tuple[list[dict[str, Any]], list[MediaPart]]:
        return split_messages(messages, self._limits, self.bounds, self._processor.placeholders)

    def _prompt(self, plain: list[dict[str, Any]], media: list[MediaPart]) -> Prepared:
        context = MediaContext.of([part.kind for part in media])
        deadline = time.monotonic() + self._limits.decode_timeout_s
        loader = MediaLoader(self.decoders, self._limits, self._processor, deadline)

        def make() -> Prompt:
            text = self._processor.render(plain)  # before the pictures: it costs less to find it wrong
            return self._processor.encode(text, [self._item(loader, part, context) for part in media])

        return self._made(make, "messages")

    def _item(self, loader: MediaLoader, part: MediaPart, context: MediaContext) -> MediaItem:
        with self._decoded.share() as held:
            media = loader.load(part, lambda size, until: held.add(COPIES[part.kind] * size, until))
            with self._cutting if held.size >= FreedMemory.LARGE_BYTES else contextlib.nullcontext():
                item = self._processor.prepare(part.kind, media, context)
            size = held.size
        self._freed.give_back_after(size)
        return item

    def _made(self, make: Callable[[], Prompt], param: str) -> Prepared:
        try:
            prompt = make()
        except RequestError:
            raise
        except ValueError as error:
            raise InvalidRequest(str(error), param=param) from error
        except Exception as error:
            log.exception("the processor failed")
            raise PreprocessingFailed(
                "the model's processor failed on this request; the server's log has more"
            ) from error
        return Prepared(prompt, content_keys(prompt, self._block_size))


def text_bounds(processor: Processor, limits: ServingLimits, max_model_len: int) -> TextBounds:
    """How much text a request may have: by the limits, or as much as the context could hold at the very most."""
    characters, parts = limits.max_prompt_chars, limits.max_prompt_parts
    return TextBounds(
        max_model_len * processor.longest_token_chars if characters is None else characters,
        max(64, min(2 * max_model_len, MOST_PARTS)) if parts is None else parts,
    )


def _fetch(media: list[MediaPart], limits: ServingLimits, deadline: float, held: Share) -> list[MediaPart]:
    here = []
    for part in media:
        here.append(fetched(part, limits, deadline))
        if is_elsewhere(part):
            held.add(len(here[-1].source))
    return here
