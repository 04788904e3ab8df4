"""Answers of tokens that are no text, from a whole deployment of a model with a byte-fallback tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from epdjax import LLM, SamplingParams
from epdjax.serving.token_bytes import TokenBytes
from tests.models.tiny import SPECIALS, make_tiny_checkpoint
from tests.serving.deployments import make_llm
from tests.serving.tokenizers_of_all_kinds import BYTES

PIECES = ["▁", "a", "▁a", "日", "\ufffd", "th", "the", "▁the", "t"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ids as in the byte-level tokenizer that the tiny model comes with: its special tokens stay where they are."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("bytes"), tied=False, num_layers=3)
    vocab = {piece: i for i, piece in enumerate(BYTES + PIECES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    with make_llm(folder, "1EPD") as llm:
        yield llm


def forced(llm: LLM, *pieces: str, **params: Any) -> Any:
    """The answer of a model that can sample these tokens only."""
    bias = {llm.processor.tokenizer.backend_tokenizer.token_to_id(piece): 100.0 for piece in pieces}
    params = {"max_tokens": 12, "logit_bias": bias, "ignore_eos": True, "seed": 3} | params
    [output] = llm.chat([{"role": "user", "content": "the 日"}], SamplingParams(**params))
    return output.outputs[0]


@pytest.mark.parametrize(
    "pieces",
    [("<0xE6>",), ("<0xE6>", "<0x97>", "<0xA5>"), ("<0xFF>", "▁the"), ("<0xC3>", "<0xA9>", "▁a"), ("\ufffd",)],
)
def test_the_text_is_that_of_the_tokens(llm: LLM, pieces: tuple[str, ...]) -> None:
    answer = forced(llm, *pieces, temperature=1.0, logprobs=2)
    assert len(answer.token_ids) == 12
    assert answer.text == llm.processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    token_bytes = TokenBytes(llm.deployment.decoder)
    assert [entry.data for entry in answer.logprobs] == [
        token_bytes.text(token, first=number == 0)[1] for number, token in enumerate(answer.token_ids)
    ]


def test_figures(llm: LLM) -> None:
    assert forced(llm, "<0xE6>").text == "\ufffd" * 12
    assert forced(llm, "\ufffd").text == "\ufffd" * 12
    assert forced(llm, "<0x0A>").text == "\n" * 12
    answer = forced(llm, "▁a", logprobs=1)
    assert answer.text == "a" + " a" * 11
    assert b"".join(entry.data for entry in answer.logprobs).decode() == answer.text


def test_a_stop_string_spelt_in_bytes_ends_the_answer_with_its_last_byte(llm: LLM) -> None:
    answer = forced(llm, "<0x0A>", stop="\n\n\n")
    assert (answer.text, len(answer.token_ids), answer.finish_reason) == ("", 3, "stop")
