"""Video through the whole path: the served InternVL, and the OpenAI client."""

import base64
from typing import Any

import openai
import pytest

from epdjax.models import config_of, family_of, load_model
from epdjax.models.lmm import LMM
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.video import load_video
from tests.models import dense
from tests.serving.http.films import film
from tests.serving.http.servers import RunningServer

TOKENS = 12


def ask(server: RunningServer, data: bytes) -> Any:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    parts: list[Any] = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What happens?"}]
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        max_tokens=TOKENS,
        extra_body={"ignore_eos": True},
    )


def test_videos_are_seen(server: RunningServer) -> None:
    folder = server.engine.config.model  # type: ignore[attr-defined]
    model: LMM = load_model(folder)  # type: ignore[assignment]
    processor = family_of(folder).processor(folder, config_of(folder))
    for frames in (3, 1000):
        data = film(frames, fps=100)
        seen = load_video(data, ServingLimits(), processor.sample_frames)
        parts = [{"type": "video", "video": seen}, {"type": "text", "text": "What happens?"}]
        prompt = processor.prompt([{"role": "user", "content": parts}])
        expected = dense.greedy(model, prompt, TOKENS)
        answer = ask(server, data)
        assert answer.usage.prompt_tokens == len(prompt.token_ids)
        assert answer.choices[0].message.content == processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_what_cannot_be_seen(server: RunningServer) -> None:
    for broken in (film(10)[:300], b"no film at all"):
        with pytest.raises(openai.BadRequestError, match=r"damaged|no frames"):
            ask(server, broken)
    assert ask(server, film(2)).usage.completion_tokens == TOKENS
