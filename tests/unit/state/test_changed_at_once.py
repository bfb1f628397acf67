"""Files that several processes change: what each of them adds is kept, and what was made first counts for all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from state import keys, secrets, settings
from state.notify import targets
from state.notify.targets import NotifyTarget
from state.paths import Home

COUNT = targets.MOST


def add_key(home: Home, number: int) -> None:
    keys.create(keys.file(home), f"app{number}")


def add_target(home: Home, number: int) -> None:
    targets.add(targets.file(home), NotifyTarget(f"t{number}", "macos"))


def put_secret(home: Home, number: int) -> None:
    secrets.put(home.secrets, f"KEY_{number}", "sk-1")


def set_setting(home: Home, number: int) -> None:
    name = ("litellm-port", "tier-port-base", "page-port", "log-max-files", "max-restarts")[number]
    settings.write(home, name, {"log-max-files": 9, "max-restarts": 9}.get(name, 20_000 + 100 * number))


def pin(home: Home, number: int) -> None:
    settings.change(home, "pinned", lambda pinned: [*pinned, f"org/model-{number}"])


def count_settings(home: Home) -> int:
    return sum(value.source == "file" for value in settings.load(home).values.values())


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (add_key, lambda home: len(keys.read(keys.file(home)))),
        (add_target, lambda home: len(targets.read(targets.file(home)))),
        (put_secret, lambda home: len(secrets.read(home.secrets))),
        (set_setting, count_settings),
        (pin, lambda home: len(settings.load(home)["pinned"])),
    ],
)
def test_what_is_added_at_once_is_all_kept(
    home: Home, change: Callable[[Home, int], None], count: Callable[[Home], int]
) -> None:
    """As by two terminals, or a command and the worker: each has the file open for itself, as here each thread."""
    at_once(COUNT, lambda number: change(home, number))
    assert count(home) == COUNT


def test_targets_that_are_removed_at_once_are_all_gone(home: Home) -> None:
    for number in range(COUNT):
        add_target(home, number)
    at_once(COUNT, lambda number: targets.remove(targets.file(home), f"t{number}"))
    assert targets.read(targets.file(home)) == {}


def test_keys_that_are_made_at_once_are_the_same_for_all(home: Home) -> None:
    """The worker, the page and a command start together on a new home."""
    made: list[dict[str, str]] = []
    at_once(COUNT, lambda _: made.append(secrets.ensure(home.secrets)))
    assert made == [secrets.read(home.secrets)] * COUNT


def at_once(count: int, do: Callable[[int], None]) -> None:
    begin = threading.Barrier(count)

    def run(number: int) -> None:
        begin.wait()
        do(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
