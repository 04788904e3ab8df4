"""Sound through the whole path: a served Qwen2-Audio, and the OpenAI client."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from epdjax.serving.limits import ServingLimits
from epdjax.serving.llm import AsyncLLM
from epdjax.serving.media.audio import load_audio
from tests.models import dense
from tests.models.families import qwen2_audio
from tests.models.serving_families import CONTEXT, small_buckets
from tests.serving.http.pictures import data_url, encoded, picture
from tests.serving.http.servers import RunningServer, running
from tests.serving.http.sounds import RATE, compressed, tone, wav

TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    qwen2_audio.make(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    llm = AsyncLLM(folder, "1E1P1D", max_model_len=CONTEXT, buckets=small_buckets(folder), dtype="float32")
    with running(llm) as server, _client(server) as client:
        yield client


def _client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, *parts: Any) -> Any:
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}],
        temperature=0,
        max_tokens=TOKENS,
        extra_body={"ignore_eos": True},
    )


def spoken(sound: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}


def linked(sound: bytes, mime: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": f"data:{mime};base64,{base64.b64encode(sound).decode()}"}}


def test_clips_are_heard(client: openai.OpenAI, folder: Path) -> None:
    model: LMM = load_model(folder)  # type: ignore[assignment]
    processor = family_of(folder).processor(folder, config_of(folder))
    low, high = wav(tone(0.6)), compressed(tone(1.1), "libmp3lame", "mp3")
    answers = []
    for sound, part in ((low, spoken(low)), (high, linked(high, "audio/mpeg"))):
        heard = load_audio(sound, ServingLimits(), RATE)
        parts = [{"type": "audio", "audio": heard}, {"type": "text", "text": "What is it?"}]
        prompt = processor.prompt([{"role": "user", "content": parts}])
        expected = dense.greedy(model, prompt, TOKENS)
        answer = ask(client, part)
        assert answer.usage.prompt_tokens == len(prompt.token_ids)
        assert answer.choices[0].message.content == processor.tokenizer.decode(expected, skip_special_tokens=True)
        answers.append(answer.choices[0].message.content)
    assert answers[0] != answers[1]


def test_what_cannot_be_heard(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="160 samples is too short: this model needs at least 321"):
        ask(client, spoken(wav(tone(0.01))))
    with pytest.raises(openai.BadRequestError, match="takes no image input; it takes text, audio"):
        ask(client, {"type": "image_url", "image_url": {"url": data_url(encoded(picture(), "PNG"))}})
    assert ask(client, spoken(wav(tone(0.3)))).usage.completion_tokens == TOKENS
