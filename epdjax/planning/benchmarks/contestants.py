"""Two ways to answer the same conversations from the same checkpoint: this engine, and transformers on torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from epdjax.models.processing.pictures import like_torchvision
from epdjax.serving.llm import LLM
from epdjax.serving.params import SamplingParams

Conversation = list[dict[str, Any]]
PLACEHOLDER = "\0"  # while a prompt's pictures are put in one by one


class Contestant(Protocol):
    """Answers greedily, each conversation with exactly as many tokens as asked for."""

    name: str

    def answer(self, conversations: Sequence[Conversation], lengths: Sequence[int]) -> list[tuple[int, ...]]: ...

    def close(self) -> None: ...


class Epdjax:
    """This engine, through its offline API."""

    def __init__(self, folder: Path, mesh: str = "1EPD", **settings: Any):
        """See `LLM`."""
        self.name = f"epdjax {mesh}"
        self.llm = LLM(folder, mesh, dtype="float32", **settings)

    def answer(self, conversations: Sequence[Conversation], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """All at once; the engine batches."""
        params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
        outputs = self.llm.chat(list(conversations), params, raise_errors=True)
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self.llm.shutdown()


class Transformers:
    """``generate`` with left padding, in batches that end with their longest answer.

    Its continuous batching (``generate_batch``, ``transformers serve --continuous-batching``) takes token ids alone and
    refuses models with pictures: 5.23, ``GenerationState.use_continuous_batching`` and
    ``ContinuousMixin.generate_batch``.
    """

    def __init__(self, folder: Path, batch: int = 32, threads: int | None = None):
        """
        Args:
            batch: most conversations at a time.
            threads: of torch; None: its default, one per core.

        Raises:
            ImportError: torch is not installed.
        """
        import torch
        from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, InternVLForConditionalGeneration

        if threads:
            torch.set_num_threads(threads)
        self.name = f"transformers, batches of {batch}"
        self._torch, self._batch = torch, batch
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._tiler: Any = like_torchvision(GotOcr2ImageProcessorPil).from_pretrained(folder)
        self._model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None

    def answer(self, conversations: Sequence[Conversation], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Batch after batch, in order."""
        answers: list[tuple[int, ...]] = []
        for start in range(0, len(conversations), self._batch):
            batch = slice(start, start + self._batch)
            answers += self._answer(list(conversations[batch]), lengths[batch])
        return answers

    def _answer(self, conversations: list[Conversation], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        texts, tiles = [], []
        for conversation in conversations:
            text, some = self._prepare(conversation)
            texts.append(text)
            tiles += some
        inputs = self._tokenizer(texts, padding=True, return_tensors="pt")
        if tiles:
            inputs["pixel_values"] = self._torch.from_numpy(np.stack(tiles))
        pad = self._tokenizer.pad_token_id
        with self._torch.inference_mode():
            made = self._model.generate(**inputs, max_new_tokens=max(lengths), do_sample=False, pad_token_id=pad)
        new = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [tuple(tokens[:length]) for tokens, length in zip(new, lengths)]

    def _prepare(self, conversation: Conversation) -> tuple[str, list[np.ndarray]]:
        """The rendered text with every picture's tokens in place, and the tiles: what ``InternVLProcessor`` does, which
        needs torchvision to be made."""
        tokenizer, each = self._tokenizer, self._model.config.image_seq_length
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        tiles: list[np.ndarray] = []
        for part in conversation[0]["content"]:
            if part["type"] == "image":
                cut = self._tiler(part["image"], crop_to_patches=True)["pixel_values"]
                mark, seen = tokenizer.context_image_token, len(cut) * each
                start, end = tokenizer.start_image_token, tokenizer.end_image_token
                text = text.replace(mark, f"{start}{PLACEHOLDER * seen}{end}", 1)
                tiles += [np.asarray(tile) for tile in cut]
        return text.replace(PLACEHOLDER, tokenizer.context_image_token), tiles

    def close(self) -> None:
        del self._model
