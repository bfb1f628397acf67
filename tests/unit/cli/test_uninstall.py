"""`mlxq uninstall --all`: what is deleted, what stays, and that it is asked first."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mlxq import autostart
from mlxq.commands import completion, uninstall
from state import settings
from state.paths import Home
from tasks.weights import manifest
from tasks.weights.manifest import Manifest


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a user's own folder, without autostart."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(autostart, "uninstall", lambda _: ["Autostart is not installed."])
    return folder


def ran(*words: str) -> str:
    result = CliRunner().invoke(uninstall.command, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def model(folder: Path) -> Path:
    """Make what mlxq downloaded."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2_000_000)
    manifest.write(folder, Manifest("org/model", "main", ()))
    return folder


def test_everything_goes_and_the_program_is_named(home: Home, user: Path):
    model(home.models / "org--model")
    CliRunner().invoke(completion.command, ["fish", "--install"], catch_exceptions=False)
    installed = completion.target("fish")
    assert installed.is_relative_to(user)

    shown = ran("--all", "--dry-run")
    assert home.database.exists()
    assert f"{home.models}" in shown
    assert str(installed) in shown

    said = ran("--all", "--yes")
    assert not home.root.exists()
    assert not installed.exists()
    assert "Deleted 2" in said
    assert "The program stays: it runs from a checkout." in said
    assert "rm -r" not in said


def test_models_are_kept_where_asked(home: Home):
    kept = model(home.models / "org--model")
    ran("--all", "--keep-models", "--yes")
    assert [path.name for path in home.root.iterdir()] == ["models"]
    assert (kept / "model.safetensors").exists()


def test_of_a_folder_elsewhere_only_what_mlxq_downloaded_goes(home: Home, tmp_path: Path):
    """A link in the home is deleted, and not what it leads to."""
    models = tmp_path / "disk" / "models"
    ours, other = model(models / "org--model"), models / "photos"
    other.mkdir()
    (other / "cat.png").touch()
    settings.write(home, "model-dir", str(models))
    (home.root / "engines").symlink_to(other)

    ran("--all", "--yes")
    assert not ours.exists()
    assert (other / "cat.png").exists()


def test_a_folder_that_is_no_home_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "letter.txt").touch()
    monkeypatch.setenv("MLXQ_HOME", str(folder))
    with pytest.raises(Exception, match=r"is no home of mlxq's"):
        ran("--all", "--yes")
    assert (folder / "letter.txt").exists()


@pytest.mark.parametrize("words", [("--keep-models",), ("--dry-run",)])
def test_options_of_all_are_refused_without_it(home: Home, words: tuple[str, ...]):
    with pytest.raises(Exception, match=r"go with --all"):
        ran(*words)


def test_it_asks_first(home: Home):
    """And without a terminal it says how to confirm."""
    with pytest.raises(Exception, match="stdin is not a terminal"):
        ran("--all")
    assert home.database.exists()


def test_nothing_is_asked_where_there_is_nothing_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "none"))
    said = ran("--all")
    assert "There is no data to delete." in said
    assert "Deleted" not in said


def test_completions_of_another_program_are_left_alone(user: Path):
    path = completion.target("bash")
    path.parent.mkdir(parents=True)
    path.write_text("# mine\n")
    with pytest.raises(Exception, match=r"is not mlxq's; it was left as it is"):
        CliRunner().invoke(completion.command, ["bash", "--install"], catch_exceptions=False)
    assert path.read_text() == "# mine\n"
