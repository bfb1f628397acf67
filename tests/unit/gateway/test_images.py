"""Images of requests: what their first bytes say, which are refused, what they count for."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catalog import fit, images
from catalog.engines import abilities
from catalog.load import entries
from tasks.gateway.admission import context_limit
from tasks.gateway.dialects import checks, schemas
from tasks.gateway.images import fetch, header, parts, scaling

CAN = abilities("vllm-mlx", "cpu")


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **more)
    return buffer.getvalue()


def url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"x" * 60_000}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
    ],
)
def test_size_and_format_are_read_as_pillow_writes_them(kind: str, more: dict[str, Any]):
    assert header.of_url(url(encoded((333, 44), kind, **more), "x-any")) == header.Header(kind.lower(), 333, 44)


def test_a_picture_larger_than_its_gif_is_seen():
    content = bytearray(encoded((40, 30), "GIF"))
    content[6:10] = b"\x01\x00\x01\x00"
    assert header.read(bytes(content)) == header.Header("gif", 40, 30)


EXAMPLES = {kind: encoded(kind=kind) for kind in ("PNG", "JPEG", "GIF", "WEBP")}


@given(st.sampled_from(sorted(EXAMPLES)), st.integers(0, 60), st.binary(max_size=40))
def test_no_bytes_break_the_reader(kind: str, at: int, noise: bytes):
    content = EXAMPLES[kind]
    for damaged in (content[:at] + noise, content[:at] + noise + content[at:], noise):
        known = header.read(damaged)
        assert known is None or known.pixels > 0


def test_nothing_but_base64_of_an_image_is_one():
    for wrong in ("", "data:image/png;base64,", "data:text/html;base64,aGk=", "data:image/png;base64,***", "file:///a"):
        assert header.of_url(wrong) is None


def asked(dialect: str, link: str) -> Any:
    text = {"model": "standard"}
    match dialect:
        case "chat":
            part: Any = {"type": "image_url", "image_url": {"url": link}}
            return schemas.Chat.model_validate(text | {"messages": [{"role": "user", "content": [part]}]})
        case "responses":
            part = {"type": "input_image", "image_url": link}
            return schemas.Responses.model_validate(text | {"input": [{"role": "user", "content": [part]}]})
        case _:
            kind, _, data = link.partition(";base64,")
            source = {"type": "base64", "media_type": kind.removeprefix("data:"), "data": data}
            part = {"type": "image", "source": source if data else {"type": "url", "url": link}}
            result = {"type": "tool_result", "tool_use_id": "a", "content": [part]}
            said = {"role": "user", "content": [result]}
            return schemas.Messages.model_validate(text | {"messages": [said], "max_tokens": 9})


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_each_dialects_images_are_checked_and_links_replaced(dialect: str):
    def code(link: str, *, vision: bool = True) -> str | None:
        refusal = checks.not_carried_out(asked(dialect, link), "standard", CAN, vision=vision)
        return refusal and refusal.code

    good = url(encoded())
    assert code(good) is None
    assert code(good, vision=False) == "unsupported_parameter"
    assert code(url(b"%PDF-1.7")) == "invalid_image"
    assert code("https://example.org/a.png") == "link_not_followed"
    body = asked(dialect, "https://example.org/a.png")
    (image,) = parts.of(body)
    assert image.url == "https://example.org/a.png"
    image.put("image/png", base64.b64encode(encoded()).decode())
    assert checks.not_carried_out(body, "standard", CAN, vision=True) is None


def test_an_image_that_would_take_gigabytes_and_too_many_are_refused():
    content = bytearray(encoded())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    refusal = checks.not_carried_out(asked("chat", url(bytes(content))), "standard", CAN, vision=True)
    assert refusal
    assert "60,000 x 60,000 pixels" in refusal.message
    crowd = asked("chat", url(encoded()))
    crowd.messages[0].content *= images.MOST + 1
    refusal = checks.not_carried_out(crowd, "standard", CAN, vision=True)
    assert refusal
    assert (refusal.param, "may hold 64 images" in refusal.message) == ("messages[0].content[64]", True)


@pytest.mark.parametrize(
    ("size", "count", "most"), [((56, 28), 1, 4), ((8000, 6000), 1, 2676), ((8000, 6000), 4, 5356)]
)
def test_an_image_counts_for_the_pixels_that_a_model_gets(size: tuple[int, int], count: int, most: int):
    content = bytearray(encoded())
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    part = {"type": "image_url", "image_url": {"url": url(bytes(content))}}
    _, extra = context_limit.words({"messages": [{"content": [part] * count}]})
    assert extra == most


def test_the_plan_has_room_for_the_images_of_a_request():
    seeing, blind = entries()["ministral-3-8b"], entries()["llama-3.1-8b"]
    assert fit.image_bytes(blind) == 0
    assert fit.memory(seeing, "int4", 8192).prefill == fit.image_bytes(seeing) > 1e9
    assert fit.image_bytes(seeing) > images.MOST_PIXELS * 4, "a photo is decoded before it is read"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("9.9.9.9", True),
        ("2620:fe::fe", True),
        *((private, False) for private in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0")),
        *((private, False) for private in ("224.0.0.1", "::1", "fe80::1%en0", "fd00::1", "::ffff:127.0.0.1")),
        *((private, False) for private in ("64:ff9b::7f00:1", "2002:7f00:1::1", "ff0e::1")),
    ],
)
def test_only_public_addresses_are_asked(address: str, public: bool):
    assert fetch.is_public(address) is public


@pytest.mark.parametrize(
    "link",
    [
        *(
            "http://example.org/a.png",
            "https://example.org:8443/a.png",
            "https://me:word@example.org/a.png",
            "https:///a",
        ),
        *(
            "https://example.org:x/a",
            "https://example.org/a b",
            "https://exämple.org/a",
            "https://example.org/\r\nHost:x",
        ),
    ],
)
def test_only_plain_https_links_are_followed(link: str):
    with pytest.raises(fetch.NoImage):
        fetch.checked(link)


# In front of the engine


def seen(link: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_an_image_is_scaled_down_and_a_small_one_stays_as_it_is(kind: str):
    link = url(encoded((400, 100), kind), kind.lower())
    assert scaling.prepared(link, 40_000, 10**6) == link
    made = seen(scaling.prepared(link, 400, 10**6))
    assert (made.format, made.size) == ("PNG", (40, 10))
    assert made.getpixel((20, 5)) == pytest.approx((255, 0, 0), abs=3)


def test_a_photo_is_turned_as_its_camera_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    made = seen(scaling.prepared(url(encoded((400, 100), "JPEG", exif=exif)), 400, 10**6))
    assert made.size == (10, 40)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", encoded()[:-30], encoded((100, 101)), b"<svg/>"])
def test_what_the_engine_could_not_read_goes_no_further(content: bytes):
    with pytest.raises(scaling.Undecodable):
        scaling.prepared(url(content), 10, 10_000)
