"""What a setting takes: what could not work is refused as it is set, and not by other commands later."""

from __future__ import annotations

import pytest

from state import settings
from state.errors import UsageProblem
from state.paths import Home


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model-dir", "a\x1b[31m\nb"),
        ("model-dir", "a\x00b"),
        ("model-dir", "a\u202eb"),
        ("model-dir", "/" + "x" * 5000),
        ("model-dir", "/" + "😀" * 200),
        ("model-dir", " "),
        ("openrouter-key", "x" * 5000),
        ("openrouter-key", "a\nb"),
        ("cloud-cap-usd", "inf"),
        ("cloud-cap-usd", "1e400"),
        ("cloud-cap-usd", "nan"),
    ],
)
def test_what_cannot_work_is_refused_and_the_file_is_left(home: Home, name: str, value: str) -> None:
    with pytest.raises(UsageProblem, match=f"{name} must be "):
        settings.write(home, name, value)
    assert not home.config.exists()


@pytest.mark.parametrize("value", ["/Volumes/Große Platte/models", "/a b/ü😀", "~/models"])
def test_a_folder_may_have_any_name_that_is_shown(home: Home, value: str) -> None:
    settings.write(home, "model-dir", value)
    assert settings.load(home)["model-dir"].endswith(value.removeprefix("~"))
