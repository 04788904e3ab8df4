"""The tokenizer takes any text, and the chat template puts pictures first."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from epdjax.demo.tokenizer import IMAGE, SPECIAL_TOKENS, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts=1000).save_pretrained(str(folder))
    return load_tokenizer(folder)


@given(text=st.text())
def test_any_text_survives_but_for_its_case(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    if any(token in text for token in SPECIAL_TOKENS):
        return
    lowered = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tokenizer.decode(tokenizer.encode(text)) == lowered


def test_special_tokens_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in SPECIAL_TOKENS:
        assert len(tokenizer.encode(token)) == 1
    assert tokenizer.context_image_token == IMAGE
    assert tokenizer.eos_token == "<|im_end|>"


def test_pictures_come_before_the_text_wherever_they_are_in_the_message(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "How many?"},
                {"type": "image"},
                {"type": "image_url", "image_url": {}},
            ],
        },
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}\n{IMAGE}\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    )
