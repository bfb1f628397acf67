"""The shape of the repository: rooms of a size that can be read, and one meaning for a class name."""

from __future__ import annotations

import ast
import functools
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from support import messages

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")
LARGEST_ROOM = 24
"""Files of one folder."""
OTHER_ROOMS = {"mlxq/commands": 40, "tasks": 28}
"""One file a command, and one a kind of job."""
SMALL_LINES = 50
MOST_SMALL = 25
"""Modules of fewer than 50 lines that one other module alone imports."""
MOST_FILES_OF_A_PULL = 12
FUNCTION_LINES = {"median": 6, "p90": 15, "longest": 41}
NO_NOUNS = frozenset(
    [
        "one",
        "found",
        "told",
        "asked",
        "each",
        "held",
        "place",
        "said",
        "known",
        "made",
        "given",
        "seen",
        "kept",
        "gone",
        "there",
        "here",
        "why",
        "left",
        "others",
    ]
)
"""Names that say nothing of what a variable holds: `row`, `job`, `path`, `model`, `message`, `reason` do."""


def named(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {named(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return module -> what it says; a run that only collects parses none."""
    return {name: messages.trees()[path] for name, path in MODULES.items()}


def importers() -> dict[str, set[str]]:
    """Return module -> the modules that import it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for importer, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[whole if whole in MODULES else node.module].add(importer)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.name].add(importer)
    return dict(found)


def test_few_small_modules_have_one_importer_alone() -> None:
    """What says nothing alone belongs into the file that uses it."""
    small = [
        module
        for module, users in importers().items()
        if module in MODULES and len(users) == 1 and MODULES[module].name not in {"__init__.py", "__main__.py"}
        if len(MODULES[module].read_text(encoding="utf-8").splitlines()) < SMALL_LINES
    ]
    assert len(small) <= MOST_SMALL, small


def test_no_room_is_a_drawer() -> None:
    rooms = Counter(str(path.parent.relative_to(ROOT)) for path in MODULES.values())
    assert {room: files for room, files in rooms.items() if files > OTHER_ROOMS.get(room, LARGEST_ROOM)} == {}


def test_no_two_classes_have_one_name() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for module, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_a_pull_can_be_followed_through_a_dozen_files() -> None:
    """ARCHITECTURE names the files to open, from the command to the installed folder, in a table."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = next(part for part in re.split(r"^## ", text, flags=re.MULTILINE) if "mlxq pull" in part.split("\n")[0])
    named_files = set(re.findall(r"^\| \d+ \| `((?:mlxq|tasks|catalog|state)/[\w/]+\.py)", section, re.MULTILINE))

    assert {file for file in named_files if not (ROOT / file).is_file()} == set()
    assert {"mlxq/commands/pull.py", "tasks/pull.py", "tasks/weights/install.py"} <= named_files
    assert len(named_files) <= MOST_FILES_OF_A_PULL, sorted(named_files)


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _bound(function: ast.AST) -> set[str]:
    """Return the names of a function's parameters and variables, those of its lambdas and comprehensions among them."""
    nodes = list(ast.walk(function))
    variables = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    caught = {node.name for node in nodes if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar)}
    return variables | {node.arg for node in nodes if isinstance(node, ast.arg)} | {name for name in caught if name}


def test_variables_are_named_by_their_noun() -> None:
    named_badly = {
        f"{module}.{function.name}": sorted(names)
        for module, tree in trees().items()
        for function in _functions(tree)
        if (names := _bound(function) & NO_NOUNS)
    }
    assert named_badly == {}


def test_functions_stay_short() -> None:
    """The bounds are those of the best code that mlxq was compared with; split what outgrows them."""
    lengths = sorted(
        ((node.end_lineno or 0) - node.lineno + 1, f"{module}.{node.name}")
        for module, tree in trees().items()
        for node in _functions(tree)
    )
    lines = [length for length, _ in lengths]
    measured = {"median": statistics.median(lines), "p90": lines[len(lines) * 9 // 10], "longest": lines[-1]}

    assert all(measured[name] <= most for name, most in FUNCTION_LINES.items()), (measured, lengths[-20:])
