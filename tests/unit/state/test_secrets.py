import stat
from pathlib import Path

import pytest

from state import secrets
from state.errors import Damaged, MlxqError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets.env"


def test_absent_file_holds_no_key(path: Path):
    assert secrets.read(path) == {}


def test_ensure_makes_every_key_once(path: Path):
    """A key that clients already use never changes by itself."""
    first = secrets.ensure(path)
    assert set(first) == {secrets.MASTER, secrets.TIER, secrets.PAGE}
    assert len(set(first.values())) == 3
    assert secrets.ensure(path) == first == secrets.read(path)


def test_only_the_user_can_read_it(path: Path):
    secrets.ensure(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_an_empty_lock_is_left_beside_the_file(path: Path):
    secrets.ensure(path)
    (lock,) = set(path.parent.iterdir()) - {path}
    assert (lock.name, lock.stat().st_size, stat.S_IMODE(lock.stat().st_mode)) == (".secrets.env.lock", 0, 0o600)


def test_a_stale_temporary_file_is_no_obstacle(path: Path):
    """A worker killed while it wrote leaves its temporary file; a later one may have the same pid."""
    import os

    path.with_name(f"secrets.env.{os.getpid()}.tmp").write_text("half a li")
    assert secrets.ensure(path) == secrets.read(path)


def test_put_adds_and_removes_one_key(path: Path):
    made = secrets.ensure(path)
    secrets.put(path, secrets.CLOUD, "sk-or-1")
    assert secrets.read(path) == {**made, secrets.CLOUD: "sk-or-1"}
    secrets.put(path, secrets.CLOUD, None)
    assert secrets.read(path) == made


def test_a_file_that_others_may_read_is_refused(path: Path):
    secrets.ensure(path)
    path.chmod(0o644)
    with pytest.raises(MlxqError, match="mode 0644") as caught:
        secrets.read(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("text", ["LITELLM_MASTER_KEY", "=x", "A=b c", "lower=1", "\x00\xff"])
def test_a_damaged_file_is_named_and_kept(path: Path, text: str):
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Damaged, match=r"secrets\.env"):
        secrets.ensure(path)
    assert path.read_text() == text


@pytest.mark.parametrize("value", ["", "two words", "line\nbreak", "ключ"])
def test_a_key_that_would_break_the_file_is_refused_unseen(path: Path, value: str):
    """The value itself is not repeated: it may be most of a real key."""
    with pytest.raises(MlxqError) as caught:
        secrets.put(path, secrets.CLOUD, value)
    assert caught.value.message == "OPENROUTER_API_KEY must be printable characters without blanks."
    assert not path.exists()
