"""Pulling from a Hub that speaks the real protocol, on good days and bad ones."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hub.client import COMMIT, Hub, running
from hub.model import make

from state.errors import Busy, Damaged, DoesNotFit, Gated, MlxqError, NotFound, Offline
from tasks.system.child import Cancelled, Later
from tasks.weights import client as download
from tasks.weights import integrity, manifest, staging
from tasks.weights.formats import headers
from tasks.weights.hub import hub_reachable
from tasks.weights.source import PullRequest


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Generator[Hub]:
    """Serve a few models, also some that MLX cannot load."""
    root = tmp_path_factory.mktemp("hub")
    make(root / "tiny-4bit", shard_bytes=1 << 20)
    make(root / "big-4bit", shard_bytes=40 << 20)
    make(root / "strange-4bit", model_type="no_such_architecture")
    (root / "tiny-gguf").mkdir()
    (root / "tiny-gguf" / "tiny.Q4_K_M.gguf").write_bytes(b"GGUF")
    _make_odd(root)
    with running(root) as served:
        yield served


def _make_odd(root: Path) -> None:
    """Make models of which something is wrong that their small files tell."""
    change(make(root / "tiny-exl2"), quantization=None, quantization_config={"quant_method": "exl2"})
    change(make(root / "seven-bits"), quantization={"group_size": 64, "bits": 7})
    change(make(root / "no-bits"), quantization={"mode": "mxfp4"})
    change(make(root / "program-4bit"), model_file="modeling.py")
    (make(root / "mute-4bit") / "tokenizer.json").unlink()
    (make(root / "lost-4bit") / SHARDS[1]).unlink()
    unindexed = make(root / "unindexed-4bit")
    (unindexed / SHARDS[1]).unlink()
    (unindexed / headers.INDEX).unlink()
    twin = make(root / "twin-4bit")
    (twin / "Config.json").write_bytes((twin / "config.json").read_bytes())
    stale = make(root / "stale-4bit")
    for name in SHARDS:
        (stale / name).rename(stale / name.replace("model-", "model-part-"))
    doubled = make(root / "doubled-4bit")
    (doubled / "consolidated.safetensors").write_bytes((doubled / SHARDS[0]).read_bytes())
    (doubled / f"._{SHARDS[0]}").write_bytes(b"laid there by macOS")
    (doubled / manifest.NAME).write_text("{}")


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    plain = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(plain))


@pytest.fixture(autouse=True)
def outside(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the Hub's settings at the small one, with no token and an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.set(drop_after=5 << 20, failures=2, retry_after=1, rate=2 << 20, limited=None)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def pull(models: Path, repo: str, **more: Any) -> Path:
    options = {name: more.pop(name) for name in ("on_progress", "cancelled") if name in more}
    return download.fetch(PullRequest(f"hub:{repo}", str(models), **more), **options).folder


def same(folder: Path, hub: Hub, name: str) -> bool:
    """Tell whether every fetched file is byte for byte what the Hub has."""
    made = manifest.read(folder)
    assert made
    return all((folder / f.name).read_bytes() == (hub.root / name / f.name).read_bytes() for f in made.files)


# -- good days ------------------------------------------------------------------------------------------------------


def test_a_pull_brings_what_a_loader_reads_and_no_code_of_strangers(hub: Hub, models: Path):
    folder = pull(models, "ok/tiny-4bit")
    assert f"ok--tiny-4bit@{COMMIT[:12]}" == folder.name
    assert same(folder, hub, "tiny-4bit")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "LICENSE", "mlxq.json"} < names
    assert not {"modeling.py", "README.md"} & names
    assert [folder.name] == [path.name for path in models.iterdir() if not path.name.startswith(".")]
    assert headers.inventory(folder).model_type == "llama"


def test_python_files_come_when_they_are_asked_for(models: Path):
    assert (pull(models, "ok/tiny-4bit", code=True) / "modeling.py").exists()


def test_a_plan_tells_size_licence_and_commit_before_the_first_byte(hub: Hub):
    plan = download.plan_download("hub:ok/tiny-4bit")
    assert (plan.revision, plan.licence, plan.gated) == (COMMIT, "apache-2.0", False)
    assert sum((hub.root / "tiny-4bit" / file.name).stat().st_size for file in plan.files) == plan.size
    assert not hub.heard("resolve", "cdn")


def test_a_second_pull_fetches_nothing(hub: Hub, models: Path):
    pull(models, "ok/tiny-4bit")
    hub.set()
    pull(models, "ok/tiny-4bit")
    assert not hub.heard("resolve", "cdn")


def test_two_repos_with_one_name_do_not_meet(models: Path):
    assert pull(models, "ok/tiny-4bit") != pull(models, "nocommit/tiny-4bit")


def test_progress_grows_to_the_total(models: Path):
    heard: list[dict[str, Any]] = []
    pull(models, "slow/tiny-4bit", on_progress=heard.append)
    fetched = [step for step in heard if step["phase"] == "fetching"]
    assert sorted(step["bytes"] for step in fetched) == [step["bytes"] for step in fetched]
    assert all(0 <= step["bytes"] <= step["total"] for step in fetched)
    assert list(dict.fromkeys(s["phase"] for s in heard)) == ["asking", "adopting", "fetching", "preparing", "checking"]


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_opens_a_gated_repo_and_never_reaches_the_file_host(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_access")
    assert same(pull(models, "gated/tiny-4bit"), hub, "tiny-4bit")
    assert {"hf_access"} == {line["token"] for line in hub.heard("api", "resolve")}
    assert {None} == {line["token"] for line in hub.heard("cdn")}


def test_a_stale_token_does_not_close_a_public_repo(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    fetched = download.fetch(PullRequest("hub:ok/tiny-4bit", str(models)))
    assert "refused your token" in fetched.notes[0]


@pytest.mark.parametrize(
    ("token", "repo", "kind", "said"),
    [
        ("", "gated/tiny-4bit", Gated, "you must accept its license"),
        ("hf_known", "gated/tiny-4bit", Gated, "your token has no access yet"),
        ("", "private/tiny-4bit", NotFound, "or is private"),
        ("hf_known", "private/tiny-4bit", NotFound, "your token may not see it"),
        ("hf_wrong", "gated/tiny-4bit", Gated, "the Hub refused your token: it is not a valid one"),
        ("hf_wrong", "private/tiny-4bit", NotFound, "or is private; the Hub refused your token"),
    ],
)
def test_a_closed_repo_says_what_is_missing(  # noqa: PLR0917 (a row of the table and three fixtures)
    token: str, repo: str, kind: type[MlxqError], said: str, hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=said) as caught:
        pull(models, repo)
    assert caught.value.hint
    assert not hub.heard("cdn")


# -- what cannot be pulled ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "kind", "said"),
    [
        ("ok/tiny-gguf", NotFound, "GGUF"),
        ("ok/tiny-exl2", NotFound, "exl2"),
        ("ok/seven-bits", NotFound, "number of bits 7 is not supported"),
        ("ok/no-bits", NotFound, "does not say with how many bits"),
        ("ok/program-4bit", NotFound, "names the Python file 'modeling.py', and mlxq runs none"),
        ("ok/mute-4bit", Damaged, "^ok/mute-4bit has no tokenizer"),
        ("ok/unindexed-4bit", Damaged, "lacks model-00002-of-00002.safetensors"),
        ("ok/twin-4bit", Damaged, "'Config.json' and 'config.json', which are one file on most Macs"),
        ("ok/strange-4bit", NotFound, "no_such_architecture"),
        ("ok/tiny-4bit@no-such-branch", NotFound, "no revision 'no-such-branch'"),
        ("traversal/tiny-4bit", Damaged, "outside the folder"),
        ("html/tiny-4bit", Offline, "web page"),
    ],
)
def test_what_cannot_be_loaded_is_told_before_any_weights_come(
    repo: str, kind: type[MlxqError], said: str, hub: Hub, models: Path
):
    with pytest.raises(kind, match=said) as caught:
        pull(models, repo)
    assert caught.value.hint or caught.value.done
    assert not hub.heard("cdn")
    assert headers.scan(models) == []


def test_a_shard_that_the_repo_lacks_is_told_from_its_index_before_any_weights_come(hub: Hub, models: Path):
    """The headers of the other shards are asked for, since an index may be out of date: 8 bytes, then the header."""
    with pytest.raises(Damaged, match=f"^ok/lost-4bit does not have {SHARDS[1]}, which its index names"):
        pull(models, "ok/lost-4bit")
    assert sum(line["sent"] for line in hub.heard("cdn")) < 4096
    assert headers.scan(models) == []


def test_an_index_that_names_files_which_were_renamed_is_no_harm(hub: Hub, models: Path):
    """As mlx-lm does, which reads all files: ranges show that no tensor is missing."""
    folder = pull(models, "ok/stale-4bit")
    assert same(folder, hub, "stale-4bit")
    assert [found.state for found in headers.scan(models)] == ["valid"]


def test_what_no_loader_reads_is_not_fetched_and_not_counted(models: Path):
    """A second copy for other programs, a file of macOS, and the manifest of the mlxq that uploaded the folder."""
    folder = pull(models, "ok/doubled-4bit")
    assert headers.inventory(folder).parameters == headers.inventory(pull(models, "ok/tiny-4bit")).parameters
    assert sorted(path.name for path in folder.glob("*.safetensors")) == list(SHARDS)
    assert download.verify(folder) == []


@pytest.mark.parametrize(
    ("header", "pause_s"),
    [
        ({"retry-after": "77"}, 77),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": "limit=500, remaining=0, reset=9"}, 30),
        ({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, 3600),
        ({"retry-after": "soon"}, 30),
    ],
)
def test_the_pause_that_the_hub_names_is_kept(header: dict[str, str], pause_s: float, hub: Hub, models: Path):
    hub.set(failures=100, limited=header)
    with pytest.raises(Later) as caught:
        pull(models, "apilimit/tiny-4bit")
    assert caught.value.after_s == pause_s


def test_a_typo_names_the_nearest_repos(models: Path):
    with pytest.raises(NotFound, match="Nearest: ok/tiny-4bit") as caught:
        pull(models, "ok/tiny-4bits")
    assert caught.value.hint == "mlxq pull ok/tiny-4bit"


def test_offline_says_so(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        pull(models, "ok/tiny-4bit")
    assert not hub_reachable()


def test_a_hub_that_is_down_is_offline(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Offline, match="does not answer"):
        pull(models, "ok/tiny-4bit")
    assert not hub_reachable()


def test_the_hub_is_reachable_when_it_answers_at_all():
    assert hub_reachable()


def test_a_disk_that_is_too_small_is_told_with_the_sum(hub: Hub, models: Path):
    with pytest.raises(DoesNotFit, match=r"needs \d+ [KM]B .* too little"):
        pull(models, "ok/tiny-4bit", floor_bytes=1 << 60)
    assert not hub.heard("cdn")


# -- bad days -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["drop", "stall", "file500", "limit", "norange", "expiring", "nosizes", "nocommit"])
def test_a_host_in_trouble_still_gives_the_right_bytes(
    mode: str, hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
):
    """Connections that break, stall, answer 500 or 429 for a moment, know no ranges, or links that run out."""
    if mode == "stall":
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "2")
    assert same(pull(models, f"{mode}/big-4bit"), hub, "big-4bit")


def test_wrong_bytes_of_the_right_length_are_never_installed(models: Path):
    with pytest.raises(Damaged, match=r"sent wrong bytes .* twice"):
        pull(models, "wrong/tiny-4bit")
    assert [found for found in headers.scan(models) if found.state == "valid"] == []
    assert list(models.glob("*.partial/*.safetensors")) == []


def test_bodies_that_are_too_short_are_asked_for_again(hub: Hub, models: Path):
    assert same(pull(models, "short/tiny-4bit"), hub, "tiny-4bit")


@pytest.mark.parametrize("mode", ["limit", "apilimit"])
def test_a_long_pause_asked_for_is_told_upward_at_once(mode: str, hub: Hub, models: Path):
    """A child that starts on a crowded machine was seen to take 20 s; one that waited would take ten minutes."""
    hub.set(retry_after=600, failures=100)
    begun = time.monotonic()
    with pytest.raises(Later) as caught:
        pull(models, f"{mode}/tiny-4bit")
    assert caught.value.after_s == 600.0
    assert time.monotonic() - begun < 200


def test_a_disk_that_fills_up_pauses_the_fetch_and_keeps_what_came(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
):
    """In this process, so that the disk's free space can be made to shrink."""
    from huggingface_hub import constants

    from tasks.weights import downloader
    from tasks.weights.hub import Hub as Client

    monkeypatch.setattr(constants, "ENDPOINT", os.environ["HF_ENDPOINT"])  # read once a process, maybe by another test
    client = Client()
    plan = client.plan("slow/big-4bit", "main")
    models.mkdir()
    floor = shutil.disk_usage(models).free + (1 << 40)
    with pytest.raises(Later, match="disk is almost full"):
        downloader.Download(client, plan.repo, plan.revision, models, floor_bytes=floor).fetch(
            plan.files, lambda _: None
        )


# -- kill, cancel, go on --------------------------------------------------------------------------------------------


def cancel_at(hub: Hub, models: Path, repo: str, share: float) -> None:
    """Cancel a pull when this share of its bytes is here. From then on the Hub sends too little to come to the end."""
    there = threading.Event()

    def watch(step: dict[str, Any]) -> None:
        if step["phase"] == "fetching" and step["bytes"] > share * step["total"] and not there.is_set():
            hub.set(rate=1 << 18)
            there.set()

    with pytest.raises(Cancelled):
        pull(models, repo, on_progress=watch, cancelled=there.is_set)


def test_a_cancelled_pull_ends_at_once_and_goes_on_where_it_was(hub: Hub, models: Path):
    hub.set(rate=20 << 20)
    cancel_at(hub, models, "slow/big-4bit", 0.4)
    kept = max(found.size for found in headers.scan(models))
    assert kept < 0.9 * download.plan_download("hub:slow/big-4bit").size, "it did not go on to its end"
    hub.set(rate=20 << 20)
    heard: list[dict[str, Any]] = []
    folder = pull(models, "slow/big-4bit", on_progress=heard.append)
    told = [step for step in heard if step["phase"] == "fetching"]
    assert told[0]["resumed"] / told[0]["total"] >= 0.3
    assert all(0 <= here <= size for step in told for _, here, size in step["files"])
    assert {name for step in told for name, _, _ in step["files"]} <= {path.name for path in folder.iterdir()}
    assert same(folder, hub, "big-4bit")
    sent = sum(line["sent"] for line in hub.heard("cdn", "resolve"))
    total = download.plan_download("hub:slow/big-4bit").size
    assert sent - (total - kept) <= 1 << 20
    assert [path for path in folder.iterdir() if path.name.endswith(".part")] == []


def test_one_process_at_a_time_writes_a_folder(models: Path):
    target = models / f"ok--tiny-4bit@{COMMIT[:12]}"
    with staging.hold(target), pytest.raises(Busy):
        pull(models, "ok/tiny-4bit")
    assert pull(models, "ok/tiny-4bit") == target


# -- afterwards -----------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_found_and_only_that_one_fetched_again(hub: Hub, models: Path):
    folder = pull(models, "ok/tiny-4bit")
    assert download.verify(folder) == []
    shard = folder / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert [shard.name] == download.verify(folder)
    integrity.quarantine(folder, [shard.name])
    assert [found.state for found in headers.scan(models)] == ["partial"]
    hub.set()
    assert folder == pull(models, "ok/tiny-4bit")
    assert {shard.name} == {line["path"].rpartition("/")[2] for line in hub.heard("resolve", "cdn")}
    assert download.verify(folder) == []


def test_what_the_hugging_face_cache_holds_is_not_fetched_again(hub: Hub, models: Path, tmp_path: Path):
    plan = download.plan_download("hub:ok/tiny-4bit")
    blobs = tmp_path / "hf" / "hub" / "models--ok--tiny-4bit" / "blobs"
    blobs.mkdir(parents=True)
    for file in plan.files:
        (blobs / file.digest).write_bytes((hub.root / "tiny-4bit" / file.name).read_bytes())
    spoilt = blobs / plan.files[-1].digest
    spoilt.write_bytes(bytes(spoilt.stat().st_size))
    folder = pull(models, "ok/tiny-4bit")
    assert same(folder, hub, "tiny-4bit")
    assert {plan.files[-1].name} == {line["path"].rpartition("/")[2] for line in hub.heard("resolve", "cdn")}
