"""From messages to a prompt: what all families share. A family says how its media are cut and what stands for them.

The arithmetic is that of transformers' own image processors, feature extractors and tokenizers (no torch).
``AutoProcessor`` is not used because it also builds video processors, which need torchvision. Pixels stay uint8 here:
they are normalised on the device, inside the jitted encode.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from epdjax.models.media import Audio, MediaContext, MediaItem, Prompt, Video
from epdjax.models.processing.files import eos_token_ids, load_tokenizer
from epdjax.models.processing.templates import chat_template

Message = Mapping[str, Any]
MEDIA_TYPES: dict[str, tuple[type, str]] = {
    "image": (Image.Image, "a picture must be a PIL.Image.Image"),
    "video": (Video, "a video must be an epdjax.models.media.Video"),
    "audio": (Audio, "a clip must be an epdjax.models.media.Audio"),
}


class Processor:
    """Tokenizer, chat template and media processing of a checkpoint. Safe to call from several threads.

    A family sets `placeholders`, `mm_token` and `mm_token_id` and overrides ``prepare_image``, ``prepare_video``,
    ``prepare_audio`` (those it has) and, where it needs them, `expand`, `layout`, `sample_frames`, `sampling_rate`.

    Attributes:
        tokenizer: the HF tokenizer.
        eos_token_ids: tokens that end an answer.
        chat_template: Jinja source, or None.
        placeholders: media kind to the string that stands for one item in a rendered prompt.
        mm_token, mm_token_id: the token that stands where an MM token goes, in an expanded prompt.
        sampling_rate: of audio, samples per second.
    """

    placeholders: Mapping[str, str] = {}
    mm_token: str
    mm_token_id: int
    sampling_rate: int = 16000
    fallback_template: str | None = None  # for families whose folders may come without one

    def __init__(self, folder: str | Path, config: Any):
        """Read tokenizer and templates from a checkpoint folder.

        Raises:
            ValueError: the folder lacks one of them, or they do not fit `config`.
        """
        self.folder, self.config = Path(folder), config
        self.tokenizer = load_tokenizer(self.folder)
        self.eos_token_ids = eos_token_ids(self.folder, self.tokenizer)
        self.use_template(chat_template(self.folder, self.tokenizer) or self.fallback_template)

    # ---- what a family does ---------------------------------------------------------------------------------------

    def prepare_image(self, image: Image.Image, context: MediaContext | None = None) -> MediaItem:
        """Cut a picture into encode units; ValueError for one that the family refuses.

        `context` (here and below) is what the request holds; None: this item alone.
        """
        raise ValueError(self._unsupported("image"))

    def prepare_video(self, video: Video, context: MediaContext | None = None) -> MediaItem:
        """Cut a video into encode units; ValueError for one that the family refuses."""
        raise ValueError(self._unsupported("video"))

    def prepare_audio(self, audio: Audio, context: MediaContext | None = None) -> MediaItem:
        """Cut a clip into encode units; ValueError for one that the family refuses."""
        raise ValueError(self._unsupported("audio"))

    def expand(self, item: MediaItem, index: int) -> str:
        """What replaces the placeholder of the `index`-th media item; `mm_token` stands in it ``item.tokens`` times.

        By itself where the chat template writes the brackets around it, or there are none.
        """
        return self.mm_token * item.tokens

    def layout(self, prompt: Prompt) -> Prompt:
        """The last word on a prompt: rotary positions, what each token sees."""
        return prompt

    def sample_frames(self, frames: int, fps: float) -> np.ndarray:
        """Which frames of a video to decode: ascending indices, at least one; `frames` and `fps` are the source's."""
        raise ValueError(self._unsupported("video"))

    def _unsupported(self, kind: str) -> str:
        return f"this model takes no {kind} input; it takes {', '.join(['text', *self.placeholders])}"

    def try_out(self) -> None:
        """Prepare small items of each kind of media, and a prompt with them: settings that cannot work are found before
        the first request. One picture is wide, because some families cut those.

        Raises:
            ValueError: one cannot be prepared, and why.
        """
        for kind, mark in self.placeholders.items():
            try:
                if kind == "image":
                    sizes = ((64, 48), (640, 200))
                    items = [self.prepare_image(Image.new("RGB", size, (120, 60, 30))) for size in sizes]
                elif kind == "video":
                    frames = self.sample_frames(16, 4.0)
                    pixels = np.full((len(frames), 48, 64, 3), 90, np.uint8)
                    items = [self.prepare_video(Video(pixels, frames / 4.0, 4.0, source_frames=16))]
                else:
                    samples = 0.1 * np.sin(np.arange(self.sampling_rate) / 20, dtype=np.float32)
                    items = [self.prepare_audio(Audio(samples, self.sampling_rate))]
                self.encode(mark * len(items), items)
            except Exception as error:  # of a library that was given the settings, it may be of any kind
                raise ValueError(
                    f"the processor settings in {self.folder} cannot prepare a small {kind}: "
                    f"{' '.join(str(error).split()) or type(error).__name__}"
                ) from error

    # ---- messages -------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Messages with media to a prompt ready to be served.

        Raises:
            ValueError: see `render` and `encode`; a media part without media, or media that the family refuses.
        """
        _, media = self.split_media(messages)
        text = self.render(messages)
        context = MediaContext.of([kind for kind, _ in media])
        return self.encode(text, [self.prepare(kind, value, context) for kind, value in media])

    def prepare(self, kind: str, media: Any, context: MediaContext | None = None) -> MediaItem:
        """Cut an ``image``, ``video`` or ``audio`` into encode units; ValueError for one that the family refuses."""
        prepare: dict[str, Callable[..., MediaItem]] = {
            "image": self.prepare_image,
            "video": self.prepare_video,
            "audio": self.prepare_audio,
        }
        return prepare[kind](media, context)

    def split_media(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
        """Messages without pixels and samples, and the (kind, media) in order.

        Raises:
            ValueError: a message that is not understood, or text that contains a placeholder.
        """
        media: list[tuple[str, Any]] = []
        plain = []
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise ValueError("each message must be a mapping with a role and content")
            content = message.get("content")
            if isinstance(content, str):
                self._check_text(content)
            elif content is not None:
                if not isinstance(content, (list, tuple)):
                    raise ValueError("the content of a message must be a string or a list of parts")
                content = [self._plain_part(part, media) for part in content]
            plain.append({**message, "content": content})
        return plain, media

    def _plain_part(self, part: Any, media: list[tuple[str, Any]]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError("a text part must have a string under 'text'")
            self._check_text(part["text"])
            return {"type": "text", "text": part["text"]}
        if not isinstance(kind, str) or kind not in self.placeholders:
            if kind in MEDIA_TYPES:
                raise ValueError(self._unsupported(kind))
            raise ValueError(f"content parts must have type {', '.join(['text', *self.placeholders])}, not {kind!r}")
        if kind in part:
            wanted, complaint = MEDIA_TYPES[kind]
            if not isinstance(part[kind], wanted):
                raise ValueError(f"{complaint}, not {type(part[kind]).__name__}")
            media.append((kind, part[kind]))
        return {"type": kind}

    def _check_text(self, text: str) -> None:
        for reserved in {self.mm_token, *self.placeholders.values()}:
            if reserved in text:
                raise ValueError(f"text may not contain {reserved!r}: it stands for media")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Messages to the prompt text, one placeholder per media item, by the checkpoint's chat template.

        Args:
            messages: ``{"role":, "content":}``; content is a string or a list of ``{"type": "text", "text":}`` and
                media parts such as ``{"type": "image", "image": PIL.Image}`` (the media themselves may be left out).
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            ValueError: no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("this checkpoint has no chat template: send a plain prompt instead of messages")
        plain, _ = self.split_media(messages)
        for message in plain:
            content = message["content"]
            if isinstance(content, str) and not self._string_content:
                message["content"] = [{"type": "text", "text": content}]
            elif isinstance(content, list) and not self._list_content:
                message["content"] = self.join_parts(content)
        return self._apply_template(plain, add_generation_prompt)

    def join_parts(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """Content parts as one string, for templates that print strings only."""
        return "".join(
            part["text"] if part["type"] == "text" else f"{self.placeholders[part['type']]}\n" for part in parts
        )

    def _apply_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # templates raise whatever they like about the messages they are given
            raise ValueError(f"the chat template refused the messages: {error}") from error

    def use_template(self, template: str | None) -> None:
        """Render messages with another chat template, Jinja source; None: with none, and so refuse them.

        Raises:
            ValueError: it is not valid Jinja.
        """
        self.chat_template = template
        # Some templates loop over parts, others print a string.
        word = "probe7Q"
        self._list_content = self._renders([{"type": "text", "text": word}], word)
        self._string_content = self._renders(word, word)

    def _renders(self, content: Any, word: str) -> bool:
        if self.chat_template is None:
            return False
        try:
            text = self._apply_template([{"role": "user", "content": content}], False)
        except ValueError as error:
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                where = f"line {error.__cause__.lineno}: {error.__cause__.message}"
                raise ValueError(f"the chat template is not valid Jinja: {where}") from error
            return False
        return word in text and "'type'" not in text  # a printed Python list is no rendering

    # ---- tokens ---------------------------------------------------------------------------------------------------

    def encode(self, text: str, media: Sequence[MediaItem] = ()) -> Prompt:
        """Expand the placeholders of a prompt and tokenise it.

        Args:
            text: with one placeholder per media item, as `render` writes it or as a user wrote it.
            media: in order.

        Raises:
            ValueError: there are not as many placeholders as media items, or not of their kinds.
        """
        media = self._in_order(text, media)
        expanded = self._expand_all(text, media)
        token_ids = np.asarray(self._tokenise(expanded).ids, np.int32)
        mm_positions = np.flatnonzero(token_ids == self.mm_token_id).astype(np.int32)
        expected = sum(item.tokens for item in media)
        if len(mm_positions) != expected:
            raise ValueError(f"the prompt tokenises to {len(mm_positions)} {self.mm_token!r}, expected {expected}")
        return self.layout(Prompt(token_ids, mm_positions, tuple(media)))

    @functools.cached_property
    def longest_token_chars(self) -> int:
        """Characters of the longest token, added ones included: `n` tokens stand for at most `n` times as many, not
        counting spaces that the tokenizer drops. (Where tokens are spelt in bytes, these are counted.)"""
        return max(map(len, self.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)))

    def _tokenise(self, text: str, offsets: bool = False) -> Any:
        """The ``tokenizers.Encoding`` of a prompt's whole text; `offsets`: with the span of each token.

        A batch of one, because `encode` keeps all other Python threads waiting (it holds the interpreter's lock) and
        `encode_batch` does not. Ids are the same.
        """
        backend = self.tokenizer.backend_tokenizer
        encode_batch = backend.encode_batch if offsets else backend.encode_batch_fast
        [encoding] = encode_batch([text], add_special_tokens=self._adds_special(text))
        return encoding

    @property
    def _marks(self) -> str:
        """A regular expression for every placeholder."""
        return "|".join(re.escape(mark) for mark in sorted(set(self.placeholders.values()), key=len, reverse=True))

    def _in_order(self, text: str, media: Sequence[MediaItem]) -> list[MediaItem]:
        """The media as the prompt has them: some templates move all pictures, or all videos, to the front."""
        left, ordered = list(media), []
        found = re.findall(self._marks, text) if self.placeholders else []
        for mark in found:
            item = next((item for item in left if self.placeholders[item.kind] == mark), None)
            if item is not None:
                left.remove(item)
                ordered.append(item)
        if left or len(ordered) != len(found):
            names = ", ".join(repr(mark) for mark in dict.fromkeys(self.placeholders.values()))
            raise ValueError(f"the prompt has {len(found)} {names} placeholders for {len(media)} pictures or clips")
        return ordered

    def _expand_all(self, text: str, media: Sequence[MediaItem]) -> str:
        pieces = re.split(self._marks, text) if self.placeholders else [text]
        expanded = [pieces[0]]
        for index, (item, piece) in enumerate(zip(media, pieces[1:], strict=True)):
            expanded += [self.expand(item, index), piece]
        return "".join(expanded)

    def _adds_special(self, text: str) -> bool:
        """Whether the tokenizer may put its own tokens around `text`: not a second beginning of sequence."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))
