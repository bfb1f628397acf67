"""A settings file that is wrong is a message: what was valid last counts, and every command on settings works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from state import settings
from state.errors import MlxqError, UsageProblem
from state.paths import Home

LEVELS = zip("abcdefg", "bcdefgh", strict=True)
BOMB = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [*{before}, *{before}]\n" for before, name in LEVELS)
TEXTS: dict[str, bytes] = {
    "no YAML": b"litellm-port: 5000\nlog-max-files: [4\n",
    "a tab": b"litellm-port: 5000\n\tlog-max-files: 4\n",
    "latin-1": b"model-dir: /Volumes/Mod\xe8les\n",
    "UTF-16": "litellm-port: 5000\n".encode("utf-16"),
    "a list": b"- a\n",
    "a bomb": BOMB.encode(),
    "a nest": b"[" * 10_000,
    "two documents": b"log-max-files: 4\n---\nlog-max-files: 5\n",
    "nothing": b"",
    "a novel": b"# x\n" * 100_000,
    "zeros": bytes(4096),
}


def text(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "precious").write_text("x")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/nowhere/config.yaml")


FILES: dict[str, Callable[[Path], None]] = {name: text(content) for name, content in TEXTS.items()}
FILES |= {"a folder": folder, "a pipe": pipe, "a loop of links": loop, "a link to nowhere": dangling}


@pytest.fixture
def good(home: Home) -> Home:
    """Return a home whose settings were valid and have been read."""
    home.config.write_text("litellm-port: 5000\nlog-max-files: 7\n")
    assert settings.load(home)["litellm-port"] == 5000
    return home


@pytest.fixture(params=FILES, ids=lambda name: name)
def bad(good: Home, request: pytest.FixtureRequest) -> Home:
    """Return a home whose settings cannot be read any more."""
    FILES[request.param](good.config)
    return good


def test_the_last_valid_settings_count_and_one_problem_is_told(bad: Home) -> None:
    read = settings.load(bad)

    assert (read["litellm-port"], read["log-max-files"], read["watch-interval"]) == (5000, 7, 2)
    assert read.values["litellm-port"].source == "last valid file"
    (problem,) = read.problems
    assert str(bad.config) in problem.message
    assert problem.hint == "mlxq config edit"
    assert len(problem.message) < 300


def test_a_worker_that_is_started_since_has_them_too(bad: Home) -> None:
    settings._loaded.clear()

    assert settings.load(bad)["litellm-port"] == 5000


def test_reset_of_one_setting_works_on_any_file_and_keeps_the_old_one(bad: Home) -> None:
    aside = settings.reset(bad, "log-max-files")

    read = settings.load(bad)
    assert (read["litellm-port"], read["log-max-files"], read.problems) == (5000, 3, ())
    assert aside or bad.config.stat().st_size == 0 or not read.problems
    assert aside is None or os.path.lexists(aside)


def test_reset_of_all_works_on_any_file(bad: Home) -> None:
    aside = settings.reset(bad, None)

    assert (settings.load(bad)["litellm-port"], settings.load(bad).problems) == (4000, ())
    assert aside is not None
    assert os.path.lexists(aside)


def test_set_refuses_a_file_that_it_would_overwrite(good: Home) -> None:
    good.config.write_bytes(TEXTS["no YAML"])

    with pytest.raises(UsageProblem, match="line 2: this is not YAML"):
        settings.write(good, "log-max-files", 4)
    assert good.config.read_bytes() == TEXTS["no YAML"]


def test_each_setting_is_judged_on_its_own(good: Home) -> None:
    good.config.write_text("litellm-port: high\nlog-max-files: 9\nrestart-delay: 2001-99-99\n")

    read = settings.load(good)

    assert (read["litellm-port"], read["log-max-files"], read["restart-delay"]) == (5000, 9, 1)
    told = [(problem.message.partition(": ")[0][-6:], problem.done, problem.hint) for problem in read.problems]
    assert told == [
        ("line 1", "litellm-port has the last valid value, 5000.", "mlxq config reset litellm-port"),
        ("line 3", "restart-delay has its default.", "mlxq config reset restart-delay"),
    ]


@pytest.mark.parametrize("other", ["log-max-files", None])
def test_a_change_beside_a_value_that_yaml_cannot_make_keeps_the_one_that_counts(good: Home, other: str | None) -> None:
    good.config.write_text("allowed-origins: [http://localhost:3000]\n")
    settings.load(good)
    good.config.write_text("log-max-files: 9\nallowed-origins: 2001-99-99\nrestart-delay: 2001-99-99\n")

    if other:
        settings.reset(good, other)
    else:
        settings.write(good, "log-max-files", 5)

    assert settings.load(good)["allowed-origins"] == ["http://localhost:3000"]
    assert settings.load(good)["restart-delay"] == settings.BY_NAME["restart-delay"].default
    assert not settings.load(good).problems


def test_settings_of_a_newer_version_are_warned_about_and_kept(good: Home) -> None:
    good.config.write_text("litellm-port: 5000\nquantum-cores: 4\nlog-max-flies: 4\n")

    read = settings.load(good)

    assert read["litellm-port"] == 5000
    assert [problem.warning for problem in read.problems] == [True, True]
    assert "line 2: this mlxq has no setting 'quantum-cores'." in read.problems[0].message
    assert "Did you mean log-max-files?" in read.problems[1].message
    settings.write(good, "log-max-files", 4)
    assert "quantum-cores: 4" in good.config.read_text()
    settings.reset(good, "quantum-cores")
    assert "quantum-cores" not in good.config.read_text()


def test_a_setting_that_stands_twice_is_warned_about(home: Home) -> None:
    home.config.write_text("log-max-files: 4\nlog-max-files: 5\n")

    read = settings.load(home)

    assert read["log-max-files"] == 5
    assert "line 1: log-max-files is set again below." in read.problems[0].message


def test_ports_that_are_the_same_are_a_problem_and_the_last_valid_ones_count(good: Home) -> None:
    good.config.write_text("litellm-port: 4001\n")

    read = settings.load(good)

    assert (read["litellm-port"], read["page-port"]) == (5000, 4001)
    assert "litellm-port and page-port are both 4001" in read.problems[0].message
    with pytest.raises(UsageProblem, match="both 4001"):
        settings.write(good, "page-port", 4001)


def test_a_wrong_variable_is_a_problem_and_the_file_counts(good: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXQ_LITELLM_PORT", "high")

    read = settings.load(good)

    assert read["litellm-port"] == 5000
    assert read.problems[0].hint == "unset MLXQ_LITELLM_PORT"


def test_weights_go_nowhere_while_the_folder_for_them_is_not_known(home: Home) -> None:
    """The file was never right: the default would be another disk than the user wanted."""
    home.config.write_text("model-dir: [/Volumes/Models\n")

    with pytest.raises(UsageProblem, match="line 1"):
        settings.load(home).models(home)
    assert settings.load(home)["litellm-port"] == 4000


def test_a_secret_is_in_no_message(home: Home) -> None:
    home.config.write_text("openrouter-key: sk or v1 secret\n")

    (problem,) = settings.load(home).problems

    assert "sk or" not in problem.message + problem.done


def test_the_copy_of_the_last_valid_settings_is_private(good: Home) -> None:
    (copy,) = (good.run / "good").iterdir()

    assert copy.stat().st_mode & 0o077 == 0


def test_reading_makes_no_home(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")

    assert settings.load(home)["litellm-port"] == 4000
    assert not home.root.exists()


def test_what_cannot_be_moved_aside_is_said(good: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    good.config.write_bytes(TEXTS["zeros"])
    monkeypatch.setattr(Path, "rename", refuse)

    with pytest.raises(MlxqError, match="Cannot move"):
        settings.reset(good, None)
