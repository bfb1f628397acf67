"""The same pull from olah, a mirror by other people that serves a git repository; our own Hub may share our errors."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest
from hub.model import make
from support.ports import free_port

from tasks.weights import client, manifest
from tasks.weights.source import PullRequest

CONFIG = """
[basic]
host = ["127.0.0.1"]
port = {port}
ssl-key = ""
ssl-cert = ""
repos-path = "{work}/repos"
hf-scheme = "http"
hf-netloc = "127.0.0.1:9"
hf-lfs-netloc = "127.0.0.1:9"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
mirrors-path = ["{work}/mirror"]

[accessibility]
offline = true

[[accessibility.proxy]]
repo = "*"
allow = true

[[accessibility.cache]]
repo = "*"
allow = true
"""


@pytest.fixture
def olah(tmp_path: Path) -> Generator[tuple[Path, str]]:
    """Serve one model as org/tiny; give its folder and the address of the mirror."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    model = make(tmp_path / "mirror" / "models" / "org" / "tiny")
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "A model"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=model, check=True)
    config = tmp_path / "olah.toml"
    config.write_text(CONFIG.format(port=port, work=tmp_path))
    command = ["uvx", "--quiet", "--from", "olah==0.5.4", "olah-cli", "-c", str(config)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        until_it_answers(process, endpoint)
        yield model, endpoint
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until_it_answers(process: subprocess.Popen[bytes], endpoint: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip("olah could not be installed here")
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except urllib.error.URLError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("olah never answered")


@pytest.mark.slow
def test_a_mirror_by_other_people_is_pulled_from(
    olah: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, endpoint = olah
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = client.fetch(PullRequest("hub:org/tiny", str(tmp_path / "models"))).folder
    made = manifest.read(folder)
    assert made
    assert all((folder / file.name).read_bytes() == (model / file.name).read_bytes() for file in made.files)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=model, capture_output=True, text=True, check=True)
    assert commit.stdout.strip() == made.revision
