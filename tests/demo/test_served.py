"""The bundled model, served over HTTP through three submeshes, asked by the real client about hand-drawn pictures."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from epdjax import AsyncLLM
from epdjax.cli.invitation import ANSWER, QUESTION, example_picture
from epdjax.demo import demo_model_path
from epdjax.demo.evaluate import differences, evaluate, held_out_questions
from epdjax.serving.buckets import Buckets
from tests.serving.http.servers import running

BUCKETS = Buckets(
    units=(4, 8),
    prefill=((1, 64), (1, 256)),
    prefill_pages=(32,),
    decode_rows=(8,),
    decode_pages=(32,),
    move_blocks=(32,),
)
RED, BLUE, GREEN = (220, 40, 40), (40, 80, 220), (40, 160, 60)


def scene(*things: tuple[str, tuple[int, int, int], int, int], size: tuple[int, int] = (240, 160)) -> Image.Image:
    """A picture with ``(shape, colour, left, top)`` drawn 40 pixels large on white."""
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for shape, colour, x, y in things:
        box = (x, y, x + 40, y + 40)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    return picture


ONE = scene(("square", RED, 20, 20), ("circle", BLUE, 170, 100))
TWO = scene(("square", RED, 150, 90), ("circle", GREEN, 30, 20), ("circle", BLUE, 40, 100), size=(220, 220))


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    llm = AsyncLLM(demo_model_path(), "2E1P1D", max_model_len=512, buckets=BUCKETS, served_model_name="demo")
    with running(llm) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


def content(question: str, *pictures: Image.Image) -> list[dict]:
    parts = []
    for picture in pictures:
        png = io.BytesIO()
        picture.save(png, "PNG")
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [*parts, {"type": "text", "text": question}]


def ask(client: openai.OpenAI, question: str, *pictures: Image.Image) -> str:
    messages = [{"role": "user", "content": content(question, *pictures)}]
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    return (answer.choices[0].message.content or "").lower()


def test_the_invited_question(client: openai.OpenAI) -> None:
    assert ANSWER in ask(client, QUESTION, example_picture())


@pytest.mark.parametrize(
    ("question", "pictures", "expected"),
    [
        ("How many circles are there?", (TWO,), "2"),
        ("please count the circles", (TWO,), "2"),
        ("What colour is the square?", (ONE,), "red"),
        ("Is there a blue circle in the picture?", (ONE,), "yes"),
        ("is there a green circle?", (ONE,), "no"),
        ("Which picture has more circles?", (ONE, TWO), "second"),
        ("which picture has more circles", (TWO, ONE), "first"),
        ("Is the red square in both pictures?", (ONE, TWO), "yes"),
        ("Is the green circle in both?", (ONE, TWO), "no"),
    ],
)
def test_questions_in_ordinary_words(
    client: openai.OpenAI, question: str, pictures: tuple[Image.Image, ...], expected: str
) -> None:
    assert expected in ask(client, question, *pictures)


def test_a_short_description(client: openai.OpenAI) -> None:
    description = ask(client, "Describe the picture.", ONE)
    assert all(word in description for word in ("red", "square", "blue", "circle"))


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": content("Describe the picture.", TWO)}]
    stream = client.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    assert "".join(pieces).lower() == ask(client, "Describe the picture.", TWO)


@pytest.mark.slow
def test_held_out_questions_on_two_meshes() -> None:
    """The same answers on both; at least 95 % right, and 90 % of every kind."""
    asked = held_out_questions(per_kind=30, seed=1)
    settings = {"max_model_len": 512, "buckets": BUCKETS}
    reports = [evaluate(demo_model_path(), mesh, asked, **settings) for mesh in ("1EPD", "2E1P1D")]
    assert differences(reports) == 0
    assert all(report.passed for report in reports), [report.as_json() for report in reports]


@pytest.mark.torch
def test_transformers_answers_the_same() -> None:
    """The bundled folder is a transformers checkpoint: its own model and processor files give the same answers."""
    import torch
    from transformers import InternVLForConditionalGeneration

    from epdjax import LLM, SamplingParams
    from epdjax.models.registry import config_of, family_of

    folder = demo_model_path()
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = family_of(folder).processor(folder, config_of(folder))
    asked = held_out_questions(per_kind=2, seed=2)
    with LLM(folder, "1EPD", max_model_len=512, buckets=BUCKETS) as llm:
        params = SamplingParams(temperature=0, max_tokens=48)
        ours = [o.outputs[0].token_ids for o in llm.chat([item.conversation() for item in asked], params)]
    for item, tokens in zip(asked, ours, strict=True):
        prompt = processor.prompt(item.conversation())
        pixels = processor.image_processor(list(item.pictures), return_tensors="np", crop_to_patches=True)
        generated = model.generate(
            input_ids=torch.tensor(prompt.token_ids[None].astype("int64")),
            attention_mask=torch.ones(1, len(prompt.token_ids), dtype=torch.int64),
            pixel_values=torch.tensor(np.asarray(pixels["pixel_values"])),
            max_new_tokens=48,
            do_sample=False,
        )
        assert generated[0, len(prompt.token_ids) :].tolist() == list(tokens), item.question.text
