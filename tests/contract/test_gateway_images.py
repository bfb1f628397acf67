"""Images through the gateway to a real engine with a small model that sees, and the fetch of one behind a link."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import hybrid_model, loopback
from support.engines import KEY, Engine, installation, offline_prefix
from support.gateway import MASTER, Gateway, Upstream

from tasks.gateway.images.remote import PROGRAM

SERVER = str(Path(__file__).parents[1] / "support" / "image_server.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def picture(color: str, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> tuple[str, str]:
    """Return a media type and the base64 of an image."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return f"image/{kind.lower()}", base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def seeing(builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway whose `standard` sees, by vllm-mlx, and whose `fast` does not. It may follow links."""
    root = tmp_path_factory.mktemp("seeing")
    at = installation("vllm-mlx", root)
    folder = hybrid_model.make("vision", root / "vision", builtin_model)
    engine = Engine(root, folder, at, context=4096, name="standard", more={"vision": True})
    blind = Upstream("fast")
    front = Gateway(
        root, [engine.tier, blind.tier()], {"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": KEY}, remote_images=True
    )
    blind.start()
    engine.start()
    front.start()
    yield front
    front.stop()
    engine.stop(2)
    blind.kill()


def chat(front: Gateway, *urls: str, model: str = "standard") -> Any:
    content = [
        {"type": "text", "text": "Name it."},
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
    return front.post("/v1/chat/completions", {"model": model, "enable_thinking": False, **body}).json()


def data(color: str, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> str:
    return "data:{};base64,{}".format(*picture(color, size, kind))


def test_a_model_that_sees_tells_two_images_apart(seeing: Gateway):
    """The weights are random, so that what it says of an image means nothing, and differs with what it sees."""
    red, blue, again = (chat(seeing, data(color)) for color in ("red", "blue", "red"))
    said = [answer["choices"][0]["message"]["content"] for answer in (red, blue, again)]
    assert said[0] == said[2] != said[1]
    assert red["usage"]["prompt_tokens"] >= 64, "an image of the least size takes 64 tokens"


def test_every_dialect_and_format_shows_the_model_the_same(seeing: Gateway):
    kind, content = picture("red", kind="JPEG")
    source = {"type": "base64", "media_type": kind, "data": content}
    said = [{"type": "text", "text": "Name it."}, {"type": "image", "source": source}]
    messages = {"messages": [{"role": "user", "content": said}], "max_tokens": 4, "thinking": {"type": "disabled"}}
    claude = seeing.post("/v1/messages", {"model": "standard", "temperature": 0, **messages}).json()
    answers = [responses(seeing, data(*image)) for image in (("red",), ("red", (64, 64), "WEBP"), ("blue",))]

    assert [block["text"] for block in claude["content"]] == [
        chat(seeing, data("red"))["choices"][0]["message"]["content"]
    ]
    assert answers[0] == answers[1] != answers[2]


def responses(front: Gateway, url: str) -> list[str]:
    seen = [{"type": "input_text", "text": "Name it."}, {"type": "input_image", "image_url": url}]
    asked = {"input": [{"role": "user", "content": seen}], "max_output_tokens": 4, "temperature": 0}
    answer = front.post("/v1/responses", {"model": "standard", **asked}).json()
    assert answer["usage"]["input_tokens"] >= 64
    return [part["text"] for item in answer["output"] for part in item["content"]]


def test_what_cannot_be_decoded_is_the_callers_error_and_rests_no_tier(seeing: Gateway):
    damaged = data("red")[:-60] + "AAAA"
    assert chat(seeing, damaged)["error"]["code"] == "invalid_image"
    answer = seeing.ask("Hello", max_tokens=2)
    assert (answer.status_code, answer.headers["x-mlxq-tried"]) == (200, "standard")
    assert chat(seeing, data("red"), model="fast")["error"]["message"].endswith("fast does not take images.")


def test_the_list_of_models_tells_what_sees(seeing: Gateway):
    listed = loopback.get(f"{seeing.url}/v1/models", headers={"Authorization": f"Bearer {MASTER}"}).json()["data"]
    takes = {model["id"]: model["architecture"]["input_modalities"] for model in listed}
    assert (takes["standard"], takes["fast"]) == (["text", "image"], ["text"])
    assert {model["capabilities"]["vision"] for model in listed if model["id"] == "standard"} == {True}


def test_no_link_leads_to_this_machine_or_its_network(seeing: Gateway):
    """The setting is on; each is refused before anything is connected to."""
    for host in ("127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254"):
        error = chat(seeing, f"https://{host}/a.png")["error"]
        assert (error["code"], "no public address" in error["message"]) == ("image_not_fetched", True), error


FETCHED = {
    "/red.png": "0 True",
    "/moved": "0 True",
    "/inside": "1 False leads to 127.0.0.1, which is no public address",
    "/plain": "1 False must be https, at port 443, without a name and password",
    "/loop": "1 False is redirected too often",
    "/page": "1 False leads to no PNG, JPEG, GIF or WebP image",
    "/nowhere": "1 False is answered with HTTP 404",
    "/endless": "1 False leads to more than 20,971,520 bytes",
}


def test_a_link_is_followed_under_mlxqs_rules(tmp_path: Path):
    """A public address and its certificate, in a network of its own; every redirect is checked as the link was."""
    alone = offline_prefix()
    if alone is None or not shutil.which("openssl") or not shutil.which("ip"):
        pytest.skip("network namespaces, ip or openssl are not there")
    _, content = picture("red")
    (tmp_path / "red.png").write_bytes(base64.b64decode(content))
    certificate = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem"
    certificate += " -days 1 -subj /CN=test -addext subjectAltName=IP:9.9.9.9"
    subprocess.run(certificate.split(), cwd=tmp_path, check=True, capture_output=True)
    network = "ip link set lo up && ip address add 9.9.9.9/32 dev lo && exec"
    inside = [sys.executable, SERVER, str(PROGRAM), *FETCHED]
    done = subprocess.run(
        [*alone, "sh", "-c", f'{network} "$@"', "sh", *inside],
        cwd=tmp_path,
        env={"SSL_CERT_FILE": "cert.pem", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert {path: words.strip() for path, words in told.items()} == FETCHED, json.dumps(told)
