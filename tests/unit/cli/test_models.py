"""`mlxq models`, `mlxq catalog check` and `mlxq status --simulate`: what they list, and how they refuse."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest
from support import tiny_model

from catalog import units
from catalog.load import entries
from catalog.machine import Machine
from mlxq import cli, model_fit, model_ref, options, status_report
from mlxq.commands import pull, rm, status
from mlxq.setup import inspection
from mlxq.web import snapshot
from state import facts as host
from state import settings, stack, weights
from state.db import Database
from state.errors import DoesNotFit
from state.paths import Home
from state.stack import Engine
from tasks import stack_jobs
from tasks.system import hardware

GIB = 2**30
MACHINE = Machine("M4 Pro", "metal", "macOS 26.2", 64 * GIB, 48 * GIB, 273, "table", 17, gpu_cores=20)
MACHINES = Path(__file__).parents[2] / "fixtures" / "machines"


@pytest.fixture
def known(db: Database) -> Database:
    """Give a home that knows its machine."""
    host.put(db, "machine", MACHINE.as_row())
    return db


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--explain"], 2, "--explain needs --recommend"),
        (["--intent", "balanced"], 2, "--intent needs --recommend"),
        (["--catalog", "--show-all"], 2, "--show-all needs --recommend"),
        (["--budget", "30gb"], 2, "--budget needs --catalog or --recommend"),
        (["--available", "--family", "phi"], 2, "--family needs --catalog or --recommend"),
        (["--search", "qwen"], 2, "--search needs --available"),
        (["--catalog", "--recommend"], 2, "--catalog and --recommend are separate lists"),
        (["--catalog", "--budget", "0gb"], 2, "a size is a number above 0 with a unit"),
        (["--catalog", "--budget", "30"], 2, "such as 30gb or 24gib"),
        (["--catalog", "--family", "gemma9"], 2, "No model has the family 'gemma9'; there is"),
        (["--catalog", "--tag", "singing"], 2, "No model has the tag 'singing'; there is"),
        (["--catalog", "--family", "gemma3", "--tool-calling"], 2, "No model matches all filters"),
        (["--recommend", "--budget", "1gb"], 4, "The smallest stack needs"),
    ],
)
def test_what_makes_no_sense_is_said(
    known: Database, argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["models", *argv]) == code

    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("30gb", 30 * GIB), ("24GiB", 24 * GIB), ("512m", GIB // 2), ("1.5 TB", 1536 * GIB)],
)
def test_a_size_of_memory_is_read_as_it_is_shown(text: str, size: int) -> None:
    assert options.MemorySize().convert(text, None, None) == size


@pytest.mark.parametrize("argv", [["--catalog"], ["--recommend"], ["--recommend", "--show-all"]])
def test_every_table_fits_eighty_columns(
    home: Home, known: Database, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["models", *argv]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_the_catalog_lists_every_model_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--catalog", "--json"]) == 0

    assert sorted(entries()) == sorted(model["id"] for model in said(capsys)["models"])


def test_the_catalog_says_what_has_no_room_here(
    home: Home, known: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["models", "--catalog"])

    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "no room" in rows["qwen3.5-397b-a17b"]
    assert "no room" not in rows["qwen3-8b"]


def test_a_person_s_own_model_is_listed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.catalog.mkdir()
    text = json.dumps(
        {
            "id": "mine", "family": "Mine", "total_params_b": 1, "layers": 2, "hidden_size": 64, "context": 4096,
            "attention": {"full": 2, "kv_heads": 2, "head_dim": 32},
            "quants": {"int4": {"source": "hub:me/mine", "bytes": 10**9}},
        }
    )  # fmt: skip
    (home.catalog / "mine.yaml").write_text(text)

    cli.run(["models", "--catalog", "--family", "mine", "--json"])

    assert [model["id"] for model in said(capsys)["models"]] == ["mine"]


def test_a_wrong_model_file_is_told_with_line_and_field(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.catalog.mkdir()
    (home.catalog / "mine.yaml").write_text("id: mine\ntotal_params_b: -4\n")

    assert cli.run(["models", "--catalog"]) == 0

    out, err = capsys.readouterr()
    assert "mine.yaml:2: total_params_b: -4 is not allowed; allowed: a number above 0" in err
    assert "qwen3-8b" in out


def test_a_recommendation_stays_within_the_budget_and_explains_itself(
    home: Home, known: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["models", "--recommend", "--budget", "30gb", "--intent", "agent-fleet", "--json"])

    told = said(capsys)
    assert told["total_bytes"] <= told["budget_bytes"] == 30 * GIB
    assert [tier["tier"] for tier in told["tiers"]] == ["standard", "fast", "longctx"]
    assert told["at_once_bytes"] == sum(tier["memory_bytes"]["total"] for tier in told["tiers"] if not tier["shares"])
    assert told["total_bytes"] <= told["at_once_bytes"]
    assert "With 45 GB" in told["explain"]


def test_a_budget_beyond_the_machine_is_capped_with_a_word(
    home: Home, known: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["models", "--recommend", "--budget", "900gb", "--json"])

    out, err = capsys.readouterr()
    assert json.loads(out)["budget_bytes"] < 900 * GIB
    assert "a budget of 900 GB is more" in err


def test_weights_are_listed_with_who_uses_them_also_those_put_there_by_hand(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model.make(home.models / "by-hand")
    stack.replace(db, [Engine("fast", "by-hand", "bf16", f"file:{folder}", 9131, 512, 1, 1, 1, weights=str(folder))])
    (home.models / "other@abc.partial").mkdir()

    assert cli.run(["models", "--json"]) == 0

    hand, partial = said(capsys)["models"]
    assert (hand["model"], hand["state"], hand["used_by"], hand["source"]) == ("by-hand", "valid", ["fast"], None)
    assert hand["size_bytes"] > 100_000
    assert partial["state"] == "partial"


def test_weights_that_are_served_are_refused_before_anybody_is_asked(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model.make(home.models / "by-hand")
    stack.replace(db, [Engine("fast", "by-hand", "bf16", f"file:{folder}", 9131, 512, 1, 1, 1, weights=str(folder))])

    assert cli.run(["rm", "by-hand"]) == 1

    assert capsys.readouterr().err == (
        "Error: by-hand is served by fast. Nothing was deleted. Without it, fast could not start again until `mlxq "
        "setup`.\nNext: mlxq rm by-hand --force\n"
    )
    assert db.value("SELECT count(*) FROM jobs") == 0


def test_weights_are_told_with_when_they_were_verified(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model.make(home.models / "by-hand")
    facts = dict.fromkeys(("parameters", "bits", "context", "kv_bytes_per_token", "size", "vision"), 0)
    weights.record(
        db,
        str(folder),
        "file:/m",
        {"revision": "1", "model_type": "llama", "quantization": None, "recipe": None, **facts},
    )

    assert cli.run(["models", "--json"]) == 0
    assert [each["verified_at"] for each in said(capsys)["models"]] == [db.now()]
    assert cli.run(["models"]) == 0
    assert " ago " in capsys.readouterr().out


def test_without_weights_the_next_command_is_named(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models"]) == 0

    assert "mlxq models --recommend" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(MACHINES.glob("*.txt")), ids=lambda file: file.stem)
def test_every_recorded_machine_is_simulated(home: Home, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--simulate", str(file), "--json"]) == 0

    told = said(capsys)
    assert told["hardware"]["memory_bytes"] > GIB
    assert told["total_bytes"] <= told["budget_bytes"]


def test_a_file_that_records_no_machine_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "novel.txt").write_text("It was a dark and stormy night.")

    assert cli.run(["status", "--simulate", str(tmp_path / "novel.txt")]) == 2

    assert "no recording of a machine" in capsys.readouterr().err


MORE: dict[int, dict[str, object]] = {
    0: {"safetensors": {"parameters": {"BF16": 100_000_000, "U32": 200_000_000}}},
    2: {"safetensors": {"parameters": {"BF16": 450_000_000_000}}},
    3: {"safetensors": {"parameters": {"BF16": 500_000_000}}, "pipeline_tag": "feature-extraction"},
    4: {"safetensors": {"parameters": {"BF16": 500_000_000}}, "config": {"model_type": "unheard_of"}},
}
"""What the Hub says besides of some of the repos that it lists."""


def listed(number: int) -> dict[str, object]:
    """Return one row of the Hub's list."""
    row = {"id": f"org/m{number}", "downloads": 100 - number, "gated": number == 1}
    return row | MORE.get(number, {})


class Listing(http.server.BaseHTTPRequestHandler):
    """The Hub's list of models: 45 repos, paged by a Link header as the real one pages."""

    asked: list[dict[str, list[str]]]
    endpoint: str

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        type(self).asked.append(query)
        first, size = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        rows = [listed(n) for n in range(45)][first : first + size]
        self.send_response(200)
        if first + size < 45:
            following = f"http://evil.example/api/models?limit={size}&cursor={first + size}"
            self.send_header("Link", f'<{following}>; rel="next"')
        self.end_headers()
        self.wfile.write(json.dumps(rows).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[type[Listing]]:
    Listing.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    Listing.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Listing
    server.shutdown()
    server.server_close()
    thread.join()


def run(home: Home, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run mlxq in a process of its own: huggingface_hub reads its settings when it is imported."""
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-P", "-m", "mlxq"]
    return subprocess.run([*command, *argv], capture_output=True, text=True, check=False)


def test_the_hub_s_list_is_paged_and_filtered(home: Home, hub: type[Listing]) -> None:
    done = run(
        home, "models", "--available", "--page", "2", "--search", "qwen", "--author", "org", "--tag", "vision",
        "--json", HF_ENDPOINT=hub.endpoint,
    )  # fmt: skip

    told = json.loads(done.stdout)
    assert [repo["name"] for repo in told["models"]] == [f"org/m{n}" for n in range(20, 40)]
    assert told["more"] is True
    assert (hub.asked[0]["search"], hub.asked[0]["author"]) == (["qwen"], ["org"])
    assert hub.asked[0]["filter"] == ["mlx", "vision"]


def test_past_the_last_page_there_is_nothing(home: Home, hub: type[Listing]) -> None:
    done = run(home, "models", "--available", "--page", "4", HF_ENDPOINT=hub.endpoint)

    assert done.returncode == 0
    assert "no such MLX model" in done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "does not answer"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_without_the_hub_the_list_says_so(home: Home, environment: dict[str, str], words: str) -> None:
    done = run(home, "models", "--available", **environment)

    assert done.returncode == 1
    assert words in done.stderr


def test_the_catalog_as_shipped_passes_its_check(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["catalog", "check", "--offline", "--json"]) == 0

    told = said(capsys)
    assert (told["models"], told["findings"], told["hub_asked"]) == (len(entries()), [], False)


def test_the_check_names_every_wrong_file_and_parser(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.catalog.mkdir()
    (home.catalog / "torn.yaml").write_text("id: [torn\n")
    (home.catalog / "vague.yaml").write_text("id: vague\nlayers: some\n")

    assert cli.run(["catalog", "check", "--offline"]) == 1

    out, err = capsys.readouterr()
    assert "torn.yaml:2" in out
    assert "vague.yaml:2: layers: 'some' is not allowed" in out
    assert "The catalog has 2 errors" in err


def test_the_models_complete_in_a_shell() -> None:
    argument = options.ModelName()

    found = argument.shell_complete(None, None, "qwen3-8")  # pyright: ignore[reportArgumentType] (neither is read)

    assert [item.value for item in found] == ["qwen3-8b"]


def test_a_recommendation_without_a_hub_says_what_set_up_would_do(
    known: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.run(["models", "--recommend"]) == 0

    said = capsys.readouterr().err
    assert "The Hub is out of reach" in said
    assert "the built-in model (smollm2-135m)" in said


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        (["--family", "gemma3"], "mlxq models --catalog --family gemma3"),
        (["--tag", "two words"], "mlxq models --catalog --tag 'two words'"),
        (["--budget", "1.5gb"], "mlxq models --catalog --budget 1536mb"),
        (["--explain"], "mlxq models --recommend --explain"),
    ],
)
def test_the_hint_is_a_command_that_can_be_run(asked: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", *asked]) == 2
    assert f"Next: {hint}\n" in capsys.readouterr().err


def test_what_is_deleted_or_timed_is_completed_from_the_weights_that_are_here(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed("") == []
    tiny_model.make(home.models / "mine")
    monkeypatch.setenv("MLXQ_HOME", str(home.root))
    assert completed("") == ["mine"]
    assert completed("x") == []


def completed(begun: str) -> list[str]:
    """Give what Tab offers to `mlxq rm`."""
    with click.Context(rm.command) as ctx:
        return [each.value for each in options.InstalledName().shell_complete(ctx, rm.command.params[0], begun)]


def test_installed_models_say_what_they_need_and_with_which_window_they_fit(
    known: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those that are in no catalog: their files tell it."""
    tiny_model.make(home.models / "mine")
    assert cli.run(["models", "--json"]) == 0

    (row,) = said(capsys)["models"]
    assert row["fits_context"] == 4096
    assert 300_000_000 < row["memory_bytes"] < 2_000_000_000


def test_the_hub_s_list_says_what_fits_by_the_size_of_the_weights(known: Database, hub: type[Listing]) -> None:
    done = run(known.home, "models", "--available", "--limit", "5", HF_ENDPOINT=hub.endpoint)

    assert done.returncode == 0
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("org/")}
    assert " ".join(lines["org/m0"]).endswith(" yes")
    assert (lines["org/m0"][1], lines["org/m3"][1]) == ("chat", "embedding")
    assert re.search(r" no, needs \d+ GB$", " ".join(lines["org/m2"]))
    assert "not served" in " ".join(lines["org/m3"])
    assert "not served" in " ".join(lines["org/m4"])
    assert hub.asked[0]["expand[]"][-3:] == ["safetensors", "config", "pipeline_tag"]


@pytest.mark.parametrize(
    ("need", "free", "word"),
    [(6, 20, "yes"), (6, 5, "only alone"), (30, 20, "no, needs 30 GB"), (30, 0, "no, needs 30 GB")],
)
def test_what_fits_is_told_apart(need: int, free: int, word: str) -> None:
    """Beside the present stack, in its place, or not at all."""
    assert model_fit.verdict(need * GIB, model_fit.Room(20 * GIB, free * GIB)) == word


def test_a_model_that_this_machine_cannot_serve_is_not_downloaded(
    known: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers and the way around, before anything is asked of the Hub's weights."""
    ref = model_ref.find("qwen3.5-397b-a17b", "int4", entries(), "int4")
    need = model_fit.need(entries()["qwen3.5-397b-a17b"], "int4", model_fit.budget(known.home))
    with pytest.raises(
        DoesNotFit, match=r"needs [\d.]+ GB with the smallest window, and models may use [\d.]+ GB here"
    ):
        pull._require_room(known.home, ref, need, force=False)

    pull._require_room(known.home, ref, need, force=True)
    small = model_fit.need(entries()["qwen3-0.6b"], "int4", model_fit.budget(known.home))
    pull._require_room(known.home, ref, small, force=False)


@pytest.mark.parametrize("named", [False, True], ids=["setting", "setup"])
def test_one_figure_of_memory_is_told_everywhere(known: Database, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In setup, status, the dashboard and the plan of `--add`; the share comes from a setting or a flag."""
    if named:
        host.put(known, "stack", {"asked": {"budget_pct": 20}, "budget_named": True})
    else:
        settings.write(known.home, "memory-budget-pct", 20)
    monkeypatch.setattr(hardware, "detect", lambda: MACHINE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stack.replace(known, [Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 32768, 8 * GIB, 1, 1)])
    expected = units.memory(MACHINE.memory_bytes * 20 // 100)

    report = status_report.collect(known)

    assert f"{expected} usable for models" in status.machine_line(report.machine, report.budget_percent)
    assert units.memory(model_fit.budget(known.home)) == expected
    assert units.memory(stack_jobs.budget(known, known.home)) == expected
    assert units.memory(inspection.inspect(known.home, {"start": False}).budget({})) == expected
    assert units.memory(snapshot._memory(known, host.get(known, "machine"), []).budget) == expected
