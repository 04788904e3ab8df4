"""The demo model's tokenizer: a small byte-level BPE trained on the demo's own questions, saved the Hugging Face way.

Any text encodes (bytes are the alphabet), but case is folded: the demo's language has no use for it, and a small model
no capacity to spare.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from epdjax.demo.questions import random_question, small_talk
from epdjax.demo.scenes import random_scene

VOCAB_SIZE = 640
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE = "<img>", "</img>", "<IMG_CONTEXT>"
SPECIAL_TOKENS = (PAD, START, END, IMAGE_START, IMAGE_END, IMAGE, "<video>")

# Pictures come before the text of a message, whatever the order of its parts: the model only ever saw them there.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] in ('image', 'image_url') -%}
{{- '<IMG_CONTEXT>\\n' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- ('' if loop.first else '\\n') + part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def sample_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Questions and answers as the model will see them, for the vocabulary."""
    rng = random.Random(seed)
    for _ in range(count):
        scenes = [random_scene(rng) for _ in range(rng.choice((1, 1, 2)))]
        question = random_question(rng, scenes)
        if question is not None:
            yield f"user\n{question.text}"
            yield f"assistant\n{question.answer}"
        if rng.random() < 0.1:
            said, answer = small_talk(rng)
            yield f"user\n{said}"
            yield f"assistant\n{answer}"


def train_tokenizer(vocab_size: int = VOCAB_SIZE, texts: int = 30_000) -> PreTrainedTokenizerFast:
    """Train the vocabulary (seconds) and wrap it with special tokens and chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sample_texts(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        # InternVLProcessor asks the tokenizer for these by name.
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE,
            "video_token": "<video>",
        },
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder that `PreTrainedTokenizerFast.save_pretrained` wrote."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer
