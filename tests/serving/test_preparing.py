"""From messages to a prompt: what is bounded before it begins, and who waits for whom."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from epdjax.models.registry import config_of, family_of
from epdjax.serving import preparing
from epdjax.serving.errors import MediaError, Overloaded, ServiceUnavailable, TooLong
from epdjax.serving.limits import ServingLimits
from epdjax.serving.preparing import COPIES, Prepared, Preparer
from tests.serving.deployments import eventually
from tests.serving.http.pictures import data_url, encoded, picture

CONTEXT = 512
TEXT = [{"role": "user", "content": "hello"}]


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def url(seed: int = 0) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(encoded(picture(seed=seed)))}}


def preparer(checkpoint: Path, **limits: Any) -> Preparer:
    processor = family_of(checkpoint).processor(checkpoint, config_of(checkpoint))
    return Preparer(processor, ServingLimits(**limits), workers=1, block_size=16, max_model_len=CONTEXT)


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[Preparer]:
    made = preparer(checkpoint)
    yield made
    made.close()


def same(one: Prepared, other: Prepared) -> bool:
    return one.keys == other.keys and np.array_equal(one.prompt.token_ids, other.prompt.token_ids)


def test_pictures_in_any_form_make_the_same_prompt(shared: Preparer, tmp_path: Path) -> None:
    image = picture()
    (tmp_path / "a.png").write_bytes(encoded(image))
    made = shared.chat(user(url(), {"type": "text", "text": "what?"}))
    for source in (image, encoded(image)):
        assert same(shared.chat(user({"type": "image", "image": source}, {"type": "text", "text": "what?"})), made)
    assert same(asyncio.run(shared.chat_async(user(url(), {"type": "text", "text": "what?"}))), made)
    assert made.keys.units


def test_texts_are_bounded_before_they_are_tokenised(
    checkpoint: Path, shared: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = shared._processor.longest_token_chars
    assert shared.bounds.characters == CONTEXT * longest
    monkeypatch.setattr(shared._processor, "render", lambda *_: pytest.fail("it was rendered"))
    monkeypatch.setattr(shared._processor, "encode", lambda *_: pytest.fail("it was tokenised"))
    half = {"type": "text", "text": "x" * (CONTEXT * longest // 2 + 1)}
    with pytest.raises(TooLong, match=f"at most {CONTEXT * longest} here"):
        shared.chat(user(half, half))
    with pytest.raises(TooLong, match="messages and parts"):
        shared.chat(TEXT * (CONTEXT + 1))
    with pytest.raises(TooLong, match="messages and parts"):
        shared.chat(user(*[{"type": "text", "text": ""}] * (2 * CONTEXT)))
    with pytest.raises(TooLong):
        shared.text("x" * (CONTEXT * longest + 1))
    assert preparer(checkpoint, max_prompt_chars=7, max_prompt_parts=3).bounds.characters == 7


def test_decoded_media_are_bounded_in_total(checkpoint: Path) -> None:
    made = preparer(checkpoint, max_decoded_bytes=32 * 24 * 3 * COPIES["image"] * 2, decode_timeout_s=2.0)
    with made._decoded.share() as other:
        other.add(32 * 24 * 3 * COPIES["image"] + 1)
        with pytest.raises(Overloaded, match="holds as many pictures"):
            made.chat(user(url()))
    # One picture after the other: of a request only one is there in pixels.
    assert len(made.chat(user(url(1), url(2), url(3))).prompt.media) == 3
    assert made._decoded.used == 0
    made.close()


def test_a_picture_waits_for_room(checkpoint: Path) -> None:
    made = preparer(checkpoint, max_decoded_bytes=32 * 24 * 3 * COPIES["image"] * 2)
    with made._decoded.share() as other:
        other.add(32 * 24 * 3 * COPIES["image"] + 1)
        threading.Timer(0.3, other.release).start()
        assert made.chat(user(url())).keys.units
    made.close()


def test_downloads_are_counted_file_by_file(checkpoint: Path, tmp_path: Path) -> None:
    data = encoded(picture())
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(data)
    parts = [{"type": "image_url", "image_url": {"url": f"{index}.png"}} for index in range(8)]
    made = preparer(checkpoint, allowed_local_media_path=tmp_path, max_buffered_bytes=4 * len(data))
    read: list[str] = []
    fetch = preparing.fetched
    with pytest.MonkeyPatch.context() as patch, made._downloaded.share() as other:
        other.add(2 * len(data))
        patch.setattr(preparing, "fetched", lambda part, *more: read.append(part.source) or fetch(part, *more))
        with pytest.raises(Overloaded, match="downloads"):
            asyncio.run(made.chat_async(user(*parts)))
    assert len(read) == 3 and made._downloaded.used == 0
    made.close()


def test_pixels_of_a_request_are_bounded(checkpoint: Path) -> None:
    made = preparer(checkpoint, max_request_pixels=2 * 32 * 24)
    made.chat(user(url(1), url(2)))
    with pytest.raises(MediaError, match=r"content\[2\].*more than 1536 pixels together"):
        made.chat(user(url(1), url(2), url(3)))
    made.close()


def test_a_text_does_not_wait_for_pictures(shared: Preparer) -> None:
    release = threading.Event()

    async def main() -> None:
        others = [f"other {index}" for index in range(2 * shared.decoders.places)]
        waiting = [shared._media.submit(other, lambda: release.wait(60)) for other in others]
        task = asyncio.create_task(shared.chat_async(user(url())))
        assert len((await shared.chat_async(TEXT)).prompt.token_ids) > 0
        assert not task.done()
        release.set()
        await task
        for job in waiting:
            job.result(60)

    asyncio.run(main())


def test_downloads_do_not_hold_up_pictures_that_are_here(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    made = preparer(checkpoint, allowed_local_media_path=tmp_path)
    release = threading.Event()

    async def main() -> None:
        waiting = [made._downloads.submit(f"other {index}", lambda: release.wait(60)) for index in range(16)]
        part = {"type": "image_url", "image_url": {"url": "a.png"}}
        task = asyncio.create_task(made.chat_async(user(part), "me"))
        here = await made.chat_async(user(url()))
        assert not task.done()
        release.set()
        assert same(await task, here)
        for job in waiting:
            job.result(60)

    asyncio.run(main())
    assert made._downloaded.used == 0
    made.close()


def test_a_client_that_leaves_is_not_prepared(shared: Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    async def main() -> None:
        for index in range(shared.decoders.places):
            shared._media.submit(f"other {index}", lambda: release.wait(60))
        task = asyncio.create_task(shared.chat_async(user(url())))
        while shared._media.waiting == 0:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(shared, "_prompt", lambda *_: pytest.fail("it was prepared"))
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    eventually(lambda: shared._media.waiting == 0)


def test_closing_ends_what_is_prepared(checkpoint: Path) -> None:
    made = preparer(checkpoint)
    made.start()
    made.close()
    with pytest.raises(ServiceUnavailable):
        made.chat(user(url()))
    with pytest.raises(ServiceUnavailable):
        asyncio.run(made.chat_async(TEXT))
    assert made.chat(user({"type": "image", "image": Image.new("RGB", (9, 9))}))  # needs nobody
