"""Pictures from outside: what is taken, what it becomes, and what is refused in which words."""

import base64
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from epdjax.serving.errors import InvalidRequest, MediaError, RequestError
from epdjax.serving.limits import ServingLimits
from epdjax.serving.media.images import load_image
from tests.serving.http.pictures import bomb, data_url, encoded, picture, png
from tests.serving.media.resolved import resolve_messages

LIMITS = ServingLimits(max_images_per_request=3, max_image_pixels=1_000_000, max_image_bytes=2**20)


def refused(source: Any, limits: ServingLimits = LIMITS) -> str:
    with pytest.raises(MediaError) as caught:
        load_image(source, limits)
    text = caught.value.message
    assert " 0x" not in text and "object at" not in text and "/tmp" not in text
    return text


@pytest.mark.parametrize(
    ("kind", "mime"), [("PNG", "image/png"), ("BMP", ""), ("GIF", "image/gif"), ("WEBP", "IMAGE/WEBP")]
)
def test_lossless_formats_keep_their_pixels(kind: str, mime: str) -> None:
    original = picture(mode="P" if kind == "GIF" else "RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    image = load_image(data_url(encoded(original, kind, **options), mime), LIMITS)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_jpeg_bytes_and_pictures_pass() -> None:
    data = encoded(picture(), "JPEG")
    assert load_image(data, LIMITS).size == (32, 24)
    assert load_image(picture(mode="L"), LIMITS).mode == "RGB"
    ready = picture()
    assert load_image(ready, LIMITS) is ready, "nothing to do, nothing copied"
    assert load_image(encoded(picture(mode="CMYK"), "JPEG"), LIMITS).mode == "RGB"


def test_exif_orientation_is_applied() -> None:
    original = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(encoded(original, "PNG", exif=exif), LIMITS)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(original), -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert load_image(data, LIMITS).size == (32, 24)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    if mode == "P":
        data = encoded(Image.new("RGB", (8, 8)).quantize(), "PNG", transparency=0)
    else:
        data = encoded(Image.new(mode, (8, 8), (10, 20, 30, 0) if mode == "RGBA" else (10, 0)), "PNG")
    assert np.asarray(load_image(data, LIMITS)).min() == 255


def test_half_transparency_is_mixed_with_white() -> None:
    image = load_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), LIMITS)
    assert np.asarray(image).tolist() == np.full((8, 8, 3), 127).tolist()


def test_16_bit_gray_is_scaled() -> None:
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    image = load_image(encoded(Image.fromarray(gray), "PNG"), LIMITS)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], gray >> 8)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_gray_of_any_depth(depth: int) -> None:
    """PNG: the pixels that have just the transparent level are white, all others as they are."""
    top = 2**depth - 1
    levels = np.minimum(np.arange(8) * (1 if depth < 8 else 37), top)
    if depth == 16:
        levels = np.array([0, 255, 256, 257, 0x1234, 0x1235, 0xFFFE, 0xFFFF])
    row = int("".join(f"{level:0{depth}b}" for level in levels), 2).to_bytes(depth, "big")
    for clear in {0, 1, top, int(levels[5])}:
        image = load_image(png(8, 4, depth, 0, row, clear.to_bytes(2, "big")), LIMITS)
        shown = levels >> 8 if depth == 16 else levels * 255 // top
        expected = np.where(levels == clear, 255, shown)
        np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(expected[None, :, None], (4, 8, 3)))


def test_a_transparent_colour_of_16_bits() -> None:
    """PIL reads the first byte of each, so the colour is compared by those."""
    reds = [0x0203, 0x0300, 0x0400, 0xFF00]
    row = b"".join(red.to_bytes(2, "big") + bytes(4) for red in reds)
    image = load_image(png(4, 4, 16, 2, row, bytes([2, 3, 0, 0, 0, 0])), LIMITS)
    assert np.asarray(image)[0].tolist() == [[255] * 3, [3, 0, 0], [4, 0, 0], [255, 0, 0]]


def levels_of(array: np.ndarray, mode: str | None = None) -> list[int]:
    image = Image.fromarray(array) if mode is None else Image.frombytes(mode, array.shape[::-1], array.tobytes())
    made = np.asarray(load_image(image, LIMITS))
    assert (made == made[..., :1]).all()
    return made[0, :, 0].tolist()


def test_pictures_of_numbers() -> None:
    """One number for each pixel, in what the mode says of its range."""
    small, large = np.array([[0, 1, 200, 255]] * 4), np.array([[0, 255, 256, 65535]] * 4)
    for mode, kind in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")):  # 16 bits are 16 bits
        assert levels_of(large.astype(kind), mode) == [0, 0, 1, 255]
        assert levels_of(small.astype(kind), mode) == [0, 0, 0, 0]
    assert levels_of(small.astype(np.int32)) == [0, 1, 200, 255]  # mode I
    assert levels_of(large.astype(np.int32)) == [0, 0, 1, 255]
    assert levels_of(small.astype(np.float32)) == [0, 1, 200, 255]  # mode F
    assert levels_of(np.zeros((4, 4), np.float32)) == [0] * 4


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((4, 4), -1, np.int32), "from 0 to 65535"),
        (np.full((4, 4), 65536, np.int32), "from 0 to 65535"),
        (np.full((4, 4), 0.5, np.float32), "levels from 0 to 255; scale it"),
        (np.full((4, 4), 256, np.float32), "levels from 0 to 255; scale it"),
        (np.full((4, 4), -1, np.float32), "levels from 0 to 255; scale it"),
        (np.full((4, 4), np.nan, np.float32), "levels from 0 to 255; scale it"),
    ],
)
def test_numbers_that_are_no_levels(array: np.ndarray, says: str) -> None:
    assert says in refused(Image.fromarray(array))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa", "PA"])
def test_every_mode_is_taken(mode: str) -> None:
    assert load_image(Image.new(mode, (8, 8)), LIMITS).mode == "RGB"


def test_a_callers_picture_is_left_alone() -> None:
    given = Image.open(io.BytesIO(png(8, 4, 4, 0, bytes(4), b"\0\x0f")))
    load_image(given, LIMITS)
    assert (given.mode, given.info["transparency"]) == ("L", 15)


def test_arrays() -> None:
    rgb = np.asarray(picture())
    np.testing.assert_array_equal(np.asarray(load_image(rgb, LIMITS)), rgb)
    np.testing.assert_array_equal(np.asarray(load_image(rgb[::-1, ::2], LIMITS)), rgb[::-1, ::2])
    gray = np.asarray(load_image(rgb[..., 0], LIMITS))
    np.testing.assert_array_equal(gray, np.repeat(rgb[..., :1], 3, 2))
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (np.asarray(load_image(clear, LIMITS)) == 255).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint16),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    assert f"not {array.dtype} {list(array.shape)}" in refused(array)


def test_arrays_are_bounded_like_pictures() -> None:
    assert "no content" in refused(np.zeros((0, 8, 3), np.uint8))
    assert "at least 4 pixels" in refused(np.zeros((3, 8, 3), np.uint8))
    assert "1000000" in refused(np.zeros((1000, 1001), np.uint8))


def test_animations_give_their_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "PNG"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        assert load_image(data, LIMITS).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_no_cut_gives_a_half_picture(kind: str) -> None:
    whole = encoded(picture(), kind)
    want = np.asarray(load_image(whole, LIMITS))
    outcomes = set()
    for length in range(1, len(whole), 7):
        try:
            got = np.asarray(load_image(whole[:length], LIMITS))
        except MediaError as error:
            outcomes.add(error.message.split(";")[0])
        else:
            # Only what follows the pixels is missing.
            np.testing.assert_array_equal(got, want)
    assert any("damaged or incomplete" in text for text in outcomes)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((1, 1), "at least 4 pixels"),
        ((1, 5000), "at least 4 pixels"),
        ((5000, 4), "200 times"),
        ((1001, 1000), "1000000"),
    ],
)
def test_useless_sizes(size: tuple[int, int], says: str) -> None:
    for source in (encoded(Image.new("RGB", size), "PNG"), Image.new("RGB", size)):
        text = refused(source)
        assert says in text and f"{size[0]}x{size[1]}" in text


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    monkeypatch.setattr(PngImageFile, "load", loads.append)
    assert "50000x50000" in refused(bomb())
    assert loads == [], "nothing of it was decoded"


def test_only_our_own_limit_counts() -> None:
    generous = ServingLimits(max_image_pixels=100_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Beyond PIL's own limit, which plays no part.
        assert load_image(encoded(Image.new("1", (10_000, 9_200)), "PNG"), generous).size == (10_000, 9_200)


def test_texts_in_a_png_that_explode_are_refused() -> None:
    info = PngInfo()
    info.add_itxt("a", "x" * 5_000_000, zip=True)
    assert "damaged" in refused(encoded(picture(), "PNG", pnginfo=info))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("data:image/png;base64,", "no data"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png;base64,QUJ", "base64"),
        ("data:image/png;base64,QU\nJD", "base64"),
        ("data:image/png;base64,QUJ_", "base64"),
        ("data:image/png;base64,QUJDä", "base64"),
        ("data:image/png;base64,QQ==QQ==", "base64"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64", "malformed"),
        ("data:text/plain;base64,QUJD", "media type"),
        ("data:;base64,QUJD", "not a picture"),
        ("data:image/png;base64," + base64.b64encode(b"%PDF-1.7 hello").decode(), "not a picture"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "not a picture"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (b"GIF89a", "damaged"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "damaged"),
        (b"BM" + bytes(60), "damaged"),
        (b"x" * (2**20 + 1), "at most 1048576"),
        ("data:image/png;base64," + "A" * 2**21, "at most 1048576"),
        ("https://example.com/cat.png", "--allow-remote-media"),
        ("HTTP://example.com/cat.png", "--allow-remote-media"),
        ("file:///etc/passwd", "--allowed-local-media-path"),
        ("/etc/passwd", "--allowed-local-media-path"),
        ("cat.png", "--allowed-local-media-path"),
        ("ftp://example.com/cat.png", "data: URL"),
        ("javascript:alert(1)", "data: URL"),
        (17, "int"),
    ],
)
def test_refused_sources(source: Any, says: str) -> None:
    assert says in refused(source)


def test_tiff_and_other_formats_are_not_tried() -> None:
    for kind in ("TIFF", "PPM", "ICO", "TGA"):
        assert "not a picture in a known format" in refused(encoded(picture(), kind))


def test_local_files_only_below_the_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "open", tmp_path / "secret"
    root.mkdir()
    outside.mkdir()
    picture().save(root / "a b.png")
    picture().save(outside / "s.png")
    (root / "link.png").symlink_to(outside / "s.png")
    (root / "inner.png").symlink_to(root / "a b.png")
    os.mkfifo(root / "pipe.png")
    limits = ServingLimits(allowed_local_media_path=root)
    good: list[str | Path] = [f"file://{root}/a%20b.png", f"file://localhost{root}/inner.png", str(root / "a b.png")]
    good += ["a b.png", root / "a b.png", Path("a b.png"), Path("inner.png")]
    for path in good:
        assert load_image(path, limits).size == (32, 24)
    bad: list[str | Path] = [
        Path("link.png"),
        outside / "s.png",
        Path("../secret/s.png"),
        Path("data:image/png;base64,QUJD"),
        "link.png",
        "../secret/s.png",
        str(outside / "s.png"),
        f"file://{outside}/s.png",
        "gone.png",
        "pipe.png",
        ".",
    ]
    bad += [f"file://elsewhere{root}/a%20b.png", "a\0b", "x" * 5000, f"file://{root}/%2e%2e/secret/s.png", "file:"]
    texts = set()
    for path in bad:
        with pytest.raises(MediaError) as caught:
            load_image(path, limits)
        texts.add(caught.value.message)
    assert len(texts) == 1 and str(tmp_path) not in texts.pop()


def test_messages_are_resolved_in_place_and_in_order() -> None:
    red, blue = Image.new("RGB", (8, 9), (255, 0, 0)), Image.new("RGB", (7, 9), (0, 0, 255))
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "which?"},
        {"type": "image_url", "image_url": {"url": data_url(encoded(red))}},
        {"type": "image_url", "image_url": data_url(encoded(blue))},
        {"type": "image", "image": red},
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    resolved = resolve_messages(messages, LIMITS)
    assert resolved[0] == messages[0]
    parts = resolved[1]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "image", "image"]
    assert [part["image"].size for part in parts[1:]] == [(8, 9), (7, 9), (8, 9)]
    assert isinstance(content[1]["image_url"], dict), "the caller's messages are left alone"


def message(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("part", "error", "says"),
    [
        ({"type": "image_url"}, InvalidRequest, "no picture"),
        ({"type": "image_url", "image_url": {}}, InvalidRequest, "no picture"),
        ({"type": "image_url", "image_url": ""}, InvalidRequest, "no picture"),
        ({"type": "image", "image": None}, InvalidRequest, "no picture"),
        ({"type": "audio", "audio": "x"}, InvalidRequest, "no audio input"),
        ({"type": "smell", "smell": "x"}, InvalidRequest, "neither"),
        ("text", InvalidRequest, "neither"),
        ({"type": "image", "image": [1]}, MediaError, "list"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}, MediaError, "not a picture"),
    ],
)
def test_parts_in_error_are_named(part: Any, error: type[RequestError], says: str) -> None:
    with pytest.raises(error) as caught:
        resolve_messages(message({"type": "text", "text": "a"}, part), LIMITS)
    assert says in caught.value.message
    assert (caught.value.param or "").startswith("messages[0].content[1]")
    assert "messages[0].content[1]" in caught.value.message


def test_too_many_pictures_and_too_many_pixels() -> None:
    one = {"type": "image", "image": picture()}
    with pytest.raises(MediaError, match="4 pictures; at most 3"):
        resolve_messages(message(one, one, one, one), LIMITS)
    with pytest.raises(MediaError, match="pixels together"):
        resolve_messages(message(one, one), ServingLimits(max_request_pixels=32 * 24 * 2 - 1))


def test_limits_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_image_pixels"):
        ServingLimits(max_image_pixels=0)
    with pytest.raises(ValueError, match="not a folder"):
        ServingLimits(allowed_local_media_path=tmp_path / "gone")
    assert ServingLimits(allowed_media_hosts=("Example.COM",)).allowed_media_hosts == ("example.com",)
