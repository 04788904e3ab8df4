"""The Python API: lists with bad items in them, and what media may be given as."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import epdjax
from epdjax import LLM, SamplingParams
from epdjax.serving.errors import InvalidRequest, MediaError, RequestError, TooLong
from epdjax.serving.limits import ServingLimits
from epdjax.serving.outputs import RequestOutput
from tests.serving.deployments import CONVERSATIONS, ask, make_llm, picture
from tests.serving.http.pictures import data_url, encoded

GREEDY = SamplingParams(temperature=0, max_tokens=3)
BROKEN = encoded(picture(20, 20, 1))[:600]


@pytest.fixture(scope="module")
def llm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("media")
    (folder / "cat.png").write_bytes(encoded(picture(20, 20, 1)))
    with make_llm(checkpoint, "1EPD", limits=ServingLimits(allowed_local_media_path=folder)) as made:
        yield made


def tokens(output: RequestOutput | RequestError) -> tuple[int, ...]:
    assert isinstance(output, RequestOutput)
    return tuple(output.outputs[0].token_ids)


def with_image(source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": "the cat?"}]}]


def test_an_error_takes_the_place_of_a_bad_item(llm: LLM) -> None:
    good = CONVERSATIONS["one tile"]
    items = [good, with_image(BROKEN), ask("x" * 10_000), good, [{"role": "user", "content": 5}]]
    answers = llm.chat(items, GREEDY)
    assert [type(answer) for answer in answers] == [RequestOutput, MediaError, TooLong, RequestOutput, InvalidRequest]
    assert tokens(answers[0]) == tokens(answers[3]) == tokens(llm.chat(good, GREEDY)[0])
    assert "content[0].image" in str(answers[1]) and "damaged" in str(answers[1])
    # What is wrong with an item's settings costs that item too.
    biased = SamplingParams(temperature=0, max_tokens=3, logit_bias={10**6: 1.0})
    answers = llm.chat([good, good], [biased, GREEDY])
    assert isinstance(answers[0], InvalidRequest) and tokens(answers[1])


def test_errors_can_be_raised_and_one_conversation_raises(llm: LLM) -> None:
    with pytest.raises(MediaError, match="damaged"):
        llm.chat([CONVERSATIONS["one tile"], with_image(BROKEN)], GREEDY, raise_errors=True)
    with pytest.raises(MediaError, match="damaged"):
        llm.chat(with_image(BROKEN), GREEDY)
    with pytest.raises(TooLong):
        llm.generate("x" * 10_000, GREEDY)
    with pytest.raises(TooLong):
        llm.generate(["hi", "x" * 10_000], GREEDY, raise_errors=True)


def test_plain_prompts(llm: LLM) -> None:
    first, second, third = llm.generate(["the cat", "x" * 10_000, "the cat"], GREEDY)
    assert tokens(first) == tokens(third) and isinstance(second, TooLong)
    with pytest.raises(ValueError, match="2 prompts but 1 sampling parameters"):
        llm.generate(["a", "b"], [GREEDY])


def test_what_is_no_conversation_or_no_text_costs_itself(llm: LLM) -> None:
    good = CONVERSATIONS["text only"]
    answers = llm.chat([good, None, "hello", ask("\ud800"), good], GREEDY)  # type: ignore[list-item]
    assert [type(answer) for answer in answers] == [RequestOutput, *[InvalidRequest] * 3, RequestOutput]
    answers = llm.generate(["the cat", None, 5, "\udc00"], GREEDY)  # type: ignore[list-item]
    assert [type(answer) for answer in answers] == [RequestOutput, *[InvalidRequest] * 3]
    assert "lone surrogate" in str(answers[3])
    assert len(llm.chat((some for some in (good, good)), [None, GREEDY])) == 2  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="params must be SamplingParams"):
        llm.chat(good, {"max_tokens": 3})  # type: ignore[call-overload]


def test_the_prompts_tokens(llm: LLM) -> None:
    for conversation in (CONVERSATIONS["two pictures"], CONVERSATIONS["text only"]):
        expected = llm.processor.prompt(conversation).token_ids.tolist()
        for n in (1, 2):
            [output] = llm.chat(conversation, SamplingParams(temperature=0, max_tokens=2, n=n))
            assert list(output.prompt_token_ids) == expected and output.prompt_tokens == len(expected)


def test_no_conversations(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == [] and llm.chat([], GREEDY) == []


def test_a_picture_in_any_form_gives_the_same_answer(llm: LLM) -> None:
    image = picture(20, 20, 1)
    forms = [image, np.asarray(image), encoded(image), data_url(encoded(image)), Path("cat.png"), "cat.png"]
    answers = llm.chat([with_image(form) for form in forms], GREEDY)
    assert len({tokens(answer) for answer in answers}) == 1
    assert tokens(answers[0]) == tokens(llm.chat(CONVERSATIONS["one tile"], GREEDY)[0])


def test_media_types_are_public() -> None:
    from epdjax.models.media import Audio, Video

    assert epdjax.Video is Video and epdjax.Audio is Audio and {"Audio", "Video"} <= set(epdjax.__all__)


def test_an_interrupted_list_leaves_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, count = llm._engine.submit, 0

    def interrupted(request: Any) -> None:
        nonlocal count
        submit(request)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(llm._engine, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.chat([ask(f"the cat {i}") for i in range(50)], SamplingParams(temperature=0, max_tokens=100))
    monkeypatch.undo()
    assert tokens(llm.chat(CONVERSATIONS["text only"], GREEDY)[0])
    assert llm._engine.counts() == {} and llm._room._taken.requests == 0
