"""Print the Homebrew formula of a release: `uv run python .ci/formula.py dist/mlxq-1.2.3-py3-none-any.whl`.

Each library is a resource: the wheel that uv.lock has tested, with its hash. They are installed without an index. The
formula belongs into a tap: homebrew-core builds from source, and MLX's Metal kernels need Xcode for that.
"""

from __future__ import annotations

import hashlib
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
PYTHON = (3, 13)
MACOS = (14, 0)
"""The oldest that MLX has wheels for."""
MARKERS = {
    "sys_platform": "darwin",
    "platform_machine": "arm64",
    "platform_system": "Darwin",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "python_version": ".".join(map(str, PYTHON)),
    "python_full_version": f"{'.'.join(map(str, PYTHON))}.0",
}
FORMULA = """\
class Mlxq < Formula
  desc "Always-on LLM server for Apple silicon"
  homepage "https://pypi.org/project/mlxq/"
  url "{url}", using: :nounzip
  sha256 "{sha256}"
  license "Apache-2.0"

  depends_on "uv" => :build
  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@{python}"
{resources}
  def install
    wheels = buildpath/"wheels"
    wheels.install Dir["*.whl"]
    resources.each {{ |library| library.stage {{ wheels.install Dir["*.whl"] }} }}
    system "uv", "venv", "--python", Formula["python@{python}"].opt_bin/"python{python}", libexec
    system "uv", "pip", "install", "--offline", "--no-deps", "--python", libexec/"bin/python", *wheels.glob("*.whl")
    bin.install_symlink libexec/"bin/mlxq"
    man1.install_symlink libexec/"share/man/man1/mlxq.1"
    generate_completions_from_executable(bin/"mlxq", "completion", shells: [:bash, :zsh, :fish])
  end

  test do
    assert_match version.to_s, shell_output("#{{bin}}/mlxq --version")
  end
end
"""
RESOURCE = """
  resource "{name}" do
    url "{url}", using: :nounzip
    sha256 "{sha256}"
  end
"""


@dataclass(frozen=True)
class Resource:
    """One wheel."""

    name: str
    url: str
    sha256: str


def resources(lock: Mapping[str, Any], requirements: str) -> list[Resource]:
    """Return the wheel of each package that a Mac needs.

    `lock`: uv.lock; `requirements`: tasks/upgrade/lock.txt. Raises LookupError for a package without such a wheel.
    """
    wheels = {(package["name"], package.get("version")): package.get("wheels", []) for package in lock["package"]}
    return [_best(name, version, wheels[name, version]) for name, version in _needed(requirements)]


def _needed(requirements: str) -> Iterator[tuple[str, str]]:
    for line in requirements.splitlines():
        if line[:1].isalnum():
            pinned, _, marker = line.rstrip("\\ ").partition(";")
            name, _, version = pinned.strip().partition("==")
            if not marker or Marker(marker.strip()).evaluate(MARKERS):
                yield name.partition("[")[0], version


def _best(name: str, version: str, wheels: Iterable[Mapping[str, str]]) -> Resource:
    order = {tag: place for place, tag in enumerate(_tags())}
    ranked = [(min(ranks), wheel) for wheel in wheels if (ranks := _ranks(wheel["url"], order))]
    if not ranked:
        raise LookupError(f"{name} {version} has no wheel for a Mac")
    wheel = min(ranked, key=lambda pair: pair[0])[1]
    return Resource(name, wheel["url"], wheel["hash"].removeprefix("sha256:"))


def _ranks(url: str, order: Mapping[Tag, int]) -> list[int]:
    tags = parse_wheel_filename(url.rpartition("/")[2])[3]
    return [order[tag] for tag in tags if tag in order]


def _tags() -> Iterator[Tag]:
    """Return the tags of wheels that run on a Mac, the best first."""
    platforms = list(mac_platforms(MACOS, "arm64"))
    yield from cpython_tags(PYTHON, platforms=platforms)
    yield from compatible_tags(PYTHON, f"cp{''.join(map(str, PYTHON))}", platforms)


def formula(wheel: Path, libraries: Iterable[Resource]) -> str:
    """Return the formula's text. `wheel`: mlxq's own, as it is published."""
    name = wheel.name.partition("-")[0]
    return FORMULA.format(
        url=f"https://files.pythonhosted.org/packages/py3/{name[0]}/{name}/{wheel.name}",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        python=".".join(map(str, PYTHON)),
        resources="".join(RESOURCE.format(**vars(library)) for library in libraries),
    )


def main() -> None:
    """Print the formula for the wheel that the command line names."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    requirements = (ROOT / "tasks" / "upgrade" / "lock.txt").read_text(encoding="utf-8")
    sys.stdout.write(formula(Path(sys.argv[1]), resources(lock, requirements)))


if __name__ == "__main__":
    main()
