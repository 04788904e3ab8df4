"""From messages and pictures to token ids and uint8 tiles, on the host.

The arithmetic is that of transformers' own image processor and tokenizer (PIL backend, no torch). ``AutoProcessor`` is
not used because it also builds the video processor, which needs torchvision. Pixels stay uint8 here: they are
normalised on the device, inside the jitted encode.

Reference: HF ``InternVLProcessor``, ``GotOcr2ImageProcessor``.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoTokenizer, GotOcr2ImageProcessorPil

from epdjax.models.internvl import InternVLConfig

Message = Mapping[str, Any]

# HF's InternVLProcessor tiles pictures whatever the image processor's own default is (checkpoints say false there).
_TILED: dict[str, Any] = {"crop_to_patches": True}


@dataclasses.dataclass(frozen=True)
class MediaShape:
    """How many encode units a media item makes, and how many MM tokens each of them makes."""

    units: int
    tokens_per_unit: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """MM tokens of the whole item."""
        return sum(self.tokens_per_unit)


@dataclasses.dataclass(frozen=True, eq=False)
class MediaItem:
    """A media item ready to be encoded.

    Attributes:
        kind: what it is; ``image``.
        shape: its encode units and MM tokens.
        units_uhwc: uint8 ``[units, height, width, channels]``.
        size: (width, height) of the picture it was made from.
    """

    kind: str
    shape: MediaShape
    units_uhwc: np.ndarray
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised prompt and its media.

    Attributes:
        token_ids: int32 ``[tokens]``, placeholders expanded.
        mm_positions: int32 ``[mm_tokens]``, where in `token_ids` MM tokens go: those of the first unit first.
        media: in the order of the prompt.
    """

    token_ids: np.ndarray
    mm_positions: np.ndarray
    media: tuple[MediaItem, ...]


class InternVLProcessor:
    """Tokenizer, chat template and picture tiling of an InternVL checkpoint. Safe to call from several threads.

    Attributes:
        tokenizer: the HF tokenizer.
        eos_token_ids: tokens that end an answer.
        placeholder: the string that stands for a picture in a prompt, and for an MM token once expanded.
        placeholder_id: its token.
        chat_template: Jinja source, or None.
    """

    def __init__(self, folder: str | Path, config: InternVLConfig):
        """Read tokenizer, image processor and templates from a checkpoint folder.

        Raises:
            ValueError: the folder lacks one of them, or they do not fit `config`.
        """
        folder = Path(folder)
        self.config = config
        self.tokenizer = _load_tokenizer(folder)
        self.image_processor = _load_image_processor(folder, config)
        self.start, self.placeholder, self.end = (
            _special_token(self.tokenizer, name, default)
            for name, default in (
                ("start_image_token", "<img>"),
                ("context_image_token", "<IMG_CONTEXT>"),
                ("end_image_token", "</img>"),
            )
        )
        self.placeholder_id = int(self.tokenizer.convert_tokens_to_ids(self.placeholder))
        if self.placeholder_id != config.image_token_id:
            raise ValueError(
                f"config.json says image_token_id {config.image_token_id}, but the tokenizer gives "
                f"{self.placeholder!r} the id {self.placeholder_id}"
            )
        self.eos_token_ids = _eos_token_ids(folder, self.tokenizer)
        self.chat_template = _chat_template(folder, self.tokenizer)
        # A tokenizer that truncates or pads switches that off and on around calls, which threads would see.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self._list_content, self._string_content = self._probe_template()

    def media_shape(self, width: int, height: int) -> MediaShape:
        """Encode units and MM tokens of a picture: prompts, tiles and block allocation all follow this one function."""
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width} x {height} pixels has no content")
        units = self.image_processor.get_number_of_image_patches(height, width, dict(_TILED))
        return MediaShape(units, (self.config.tokens_per_unit,) * units)

    def prepare(self, image: Image.Image) -> MediaItem:
        """Tile a picture (and add its thumbnail where it has several tiles).

        Transparency is composited on white, as HF does; every other mode becomes 8-bit RGB as PIL converts it.

        Raises:
            ValueError: not a picture, or one without pixels.
        """
        if not isinstance(image, Image.Image):
            raise ValueError(f"a picture must be a PIL.Image.Image, not {type(image).__name__}")
        shape = self.media_shape(*image.size)
        # The processor is given a PIL image, never an array: it guesses the layout of arrays from their shape, wrongly
        # for pictures 1 or 3 pixels high.
        out = self.image_processor(
            image, do_convert_rgb=True, do_resize=True, do_rescale=False, do_normalize=False, **_TILED
        )
        units = np.stack([np.asarray(tile) for tile in out["pixel_values"]]).transpose(0, 2, 3, 1)
        if units.dtype != np.uint8 or units.shape != (shape.units, *self.config.unit_shape):
            raise ValueError(
                f"a picture of {image.size} pixels became {units.dtype} {units.shape}, expected {shape.units} tiles of "
                f"{self.config.unit_shape}"
            )
        return MediaItem("image", shape, np.ascontiguousarray(units), image.size)

    def split_media(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
        """Messages without pixels, and the pictures in order.

        Raises:
            ValueError: a message that is not understood, or text that contains the placeholder.
        """
        images: list[Image.Image] = []
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
                content = [self._plain_part(part, images) for part in content]
            plain.append({**message, "content": content})
        return plain, images

    def _plain_part(self, part: Any, images: list[Image.Image]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError("a text part must have a string under 'text'")
            self._check_text(part["text"])
            return {"type": "text", "text": part["text"]}
        if kind == "image":
            if "image" in part:
                images.append(part["image"])
            return {"type": "image"}
        raise ValueError(f"content parts must have type 'text' or 'image', not {kind!r}")

    def _check_text(self, text: str) -> None:
        if self.placeholder in text:
            raise ValueError(f"text may not contain {self.placeholder!r}: it stands for pictures")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Messages to the prompt text, one placeholder per picture, by the checkpoint's chat template.

        Args:
            messages: ``{"role":, "content":}``; content is a string or a list of ``{"type": "text", "text":}`` and
                ``{"type": "image", "image": PIL.Image}`` (the pixels are not looked at and may be left out).
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
                message["content"] = "".join(
                    part["text"] if part["type"] == "text" else f"{self.placeholder}\n" for part in content
                )
        return self._apply_template(plain, add_generation_prompt)

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

    def _probe_template(self) -> tuple[bool, bool]:
        """Whether the template renders list content and string content: some loop over parts, others print a string."""
        if self.chat_template is None:
            return False, False
        word = "probe7Q"

        def renders(content: Any) -> bool:
            try:
                text = self._apply_template([{"role": "user", "content": content}], False)
            except ValueError:
                return False
            return word in text and "'type'" not in text  # a printed Python list is no rendering

        return renders([{"type": "text", "text": word}]), renders(word)

    def encode(self, text: str, shapes: Sequence[MediaShape] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Expand the placeholders of a prompt and tokenise it.

        Args:
            text: with one placeholder per media item, as `render` writes it or as a user wrote it.
            shapes: of the media items, in order.

        Returns:
            (token ids int32 ``[tokens]``, positions of the MM tokens in it int32 ``[mm_tokens]``).

        Raises:
            ValueError: there are not as many placeholders as media items.
        """
        pieces = text.split(self.placeholder)
        if len(pieces) - 1 != len(shapes):
            raise ValueError(
                f"the prompt has {len(pieces) - 1} {self.placeholder!r} placeholders for {len(shapes)} pictures"
            )
        expanded = [pieces[0]]
        for shape, piece in zip(shapes, pieces[1:], strict=True):
            expanded += [self.start, self.placeholder * shape.tokens, self.end, piece]
        encoding = self.tokenizer.backend_tokenizer.encode("".join(expanded), add_special_tokens=True)
        token_ids = np.asarray(encoding.ids, np.int32)
        mm_positions = np.flatnonzero(token_ids == self.placeholder_id).astype(np.int32)
        expected = sum(shape.tokens for shape in shapes)
        if len(mm_positions) != expected:
            raise ValueError(f"the prompt tokenises to {len(mm_positions)} {self.placeholder!r}, expected {expected}")
        return token_ids, mm_positions

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Messages with pictures to a prompt ready to be served.

        Raises:
            ValueError: see `render`, `prepare` and `encode`; or a picture part without a picture.
        """
        _, images = self.split_media(messages)
        text = self.render(messages)
        media = tuple(self.prepare(image) for image in images)
        token_ids, mm_positions = self.encode(text, [item.shape for item in media])
        return Prompt(token_ids, mm_positions, media)


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load a tokenizer from {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer in {folder} has no tokenizer.json, which streaming needs")
    return tokenizer


def _load_image_processor(folder: Path, config: InternVLConfig) -> GotOcr2ImageProcessorPil:
    try:
        processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the image processor from {folder}: {error}") from error
    size = (processor.size["height"], processor.size["width"])
    if size != config.unit_shape[:2]:
        raise ValueError(f"the image processor makes tiles of {size}, the vision tower takes {config.unit_shape[:2]}")
    if not (processor.do_rescale and processor.do_normalize) or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError("the image processor must rescale by 1/255 and normalise (do_rescale, do_normalize)")
    return processor


def _special_token(tokenizer: Any, name: str, default: str) -> str:
    token = getattr(tokenizer, name, None) or default
    known = tokenizer.get_added_vocab()
    if token not in known:
        raise ValueError(f"the tokenizer has no added token {token!r} ({name})")
    return token


def _id_list(value: Any) -> Iterator[int]:
    if value is not None:
        yield from ([value] if isinstance(value, int) else value)


def _eos_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Every token that any of the folder's files calls an end of sequence."""
    ids = set(_id_list(tokenizer.eos_token_id))
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            for section in (settings, settings.get("text_config") or {}):
                ids.update(_id_list(section.get("eos_token_id")))
    return frozenset(ids)


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The processor's template where there is one, else the tokenizer's."""
    jinja, legacy = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    if legacy.is_file():
        return json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
