from typing import Any

import pytest

from tasks.plan.engine_faults import Remedy, remedy

CASES: list[tuple[str, dict[str, Any], Remedy]] = [
    ("aborted", {"crash_loop": True, "trial": True}, Remedy.TAKE_BACK),
    ("aborted", {"crash_loop": True}, Remedy.OTHER_ENGINE),
    ("aborted", {"crash_loop": True, "alternative": False}, Remedy.NONE),
    ("aborted", {"crash_loop": True, "trial": True, "alternative": False}, Remedy.TAKE_BACK),
    ("aborted", {}, Remedy.NONE),
    ("failed", {"crash_loop": True, "own": False}, Remedy.OTHER_ENGINE),
    ("engine_failed", {"crash_loop": True, "trial": True}, Remedy.TAKE_BACK),
    ("out_of_memory", {"crash_loop": True, "trial": True}, Remedy.NONE),
    ("killed", {"crash_loop": True, "trial": True}, Remedy.NONE),
    ("unsupported", {"permanent": True, "trial": True}, Remedy.OTHER_ENGINE),
    ("unsupported", {"permanent": True, "trial": True, "served": True}, Remedy.TAKE_BACK),
    ("unsupported", {"permanent": True, "served": True}, Remedy.OTHER_ENGINE),
    ("unsupported", {"permanent": True, "own": False}, Remedy.OTHER_ENGINE),
    ("unsupported", {"permanent": True, "alternative": False}, Remedy.NONE),
    ("bad_argument", {"permanent": True, "trial": True}, Remedy.TAKE_BACK),
    ("bad_argument", {"permanent": True}, Remedy.OTHER_ENGINE),
    ("damaged", {"permanent": True, "trial": True}, Remedy.NONE),
    ("port_taken", {"permanent": True, "trial": True}, Remedy.NONE),
    ("not_installed", {"permanent": True}, Remedy.REINSTALL),
    ("not_installed", {"permanent": True, "own": False}, Remedy.NONE),
]


@pytest.mark.parametrize(("code", "known", "expected"), CASES)
def test_what_helps(code: str, known: dict[str, Any], expected: Remedy) -> None:
    usual = {"permanent": False, "crash_loop": False, "own": True, "trial": False, "alternative": True, "served": False}

    assert remedy(code, **(usual | known)) == expected
