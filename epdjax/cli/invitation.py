"""A request to paste: the first thing a newcomer does with a running server."""

import base64
import io
import json

from PIL import Image, ImageDraw

QUESTION = "How many red circles are there?"
ANSWER = "2"


def example_picture() -> Image.Image:
    """Two red circles and a blue square. Few colours keep it small enough to stand in a command line."""
    picture = Image.new("RGB", (180, 120), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 20, 60, 60), fill=(220, 40, 40))
    draw.ellipse((110, 65, 150, 105), fill=(220, 40, 40))
    draw.rectangle((108, 15, 148, 55), fill=(40, 80, 220))
    return picture


def example_request(model: str) -> dict[str, object]:
    """An OpenAI-style chat request about `example_picture`."""
    png = io.BytesIO()
    example_picture().quantize(4).save(png, "PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"model": model, "temperature": 0, "messages": [{"role": "user", "content": content}]}


def invitation(host: str, port: int, model: str) -> str:
    """The address, and a command that asks about a picture of two red circles and a blue square."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return (
        f"\nserving {model} at {address}/v1\n"
        "ask about a picture of two red circles and a blue square:\n\n"
        f"curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(example_request(model))}'\n"
    )
