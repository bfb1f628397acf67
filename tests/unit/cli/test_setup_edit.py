"""Changes of the stack by hand: `mlxq setup --add`, `--remove`, `--model`, and the tasks behind them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny_model
from support.here import Run, runner
from support.ports import free_port

from catalog.load import entries
from catalog.machine import Machine
from mlxq import cli
from mlxq.commands import setup
from mlxq.setup import edit
from mlxq.setup.edit import StackChange
from state import facts, job, ledger, service, stack
from state.db import Database
from state.errors import DoesNotFit, MlxqError, NotFound, NotSetUp, Offline, UsageProblem
from state.job import JobState
from state.paths import Home
from state.stack import Engine, as_tiers
from tasks import assign, executor, kinds, model_file, recommend, score, stack_jobs
from tasks.plan import serving_options
from tasks.plan.placement import place
from tasks.plan.serving_options import ServingOptions
from tasks.weights import description

GB = 10**9
SMALL = entries()["smollm2-135m"]
QUANT = next(iter(SMALL.quants))
STANDARD = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", 8000, 32768, 8 * GB, 1, 1)
FAST = replace(STANDARD, name="fast", port=8001, memory_bytes=GB)
MACHINE = Machine("test", "cpu", "Linux", 64 * GB, 48 * GB, 100.0, "measured", 1.0)


@pytest.fixture
def settled(db: Database) -> Database:
    """Give the ledger of a machine with two tiers, whose engines have rows."""
    facts.put(db, "machine", MACHINE.as_row())
    stack.replace(db, [STANDARD, FAST])
    for tier in (STANDARD, FAST):
        service.ensure(db, tier.name, "engine", tier.port)
        service.set_desired(db, tier.name, "up")
    return db


def test_a_tier_gets_the_most_context_that_fits_and_the_first_free_port() -> None:
    made = place("tiny", SMALL, QUANT, as_tiers([STANDARD, FAST]), base_port=8000, budget_bytes=20 * GB)

    assert (made.engine.port, made.context, made.engine.source) == (8002, SMALL.context, SMALL.quants[QUANT].source)
    assert made.engine.memory_bytes + STANDARD.memory_bytes + FAST.memory_bytes <= 20 * GB
    again = place("tiny", SMALL, QUANT, as_tiers([STANDARD]), base_port=8000, budget_bytes=20 * GB)
    assert again.engine.port == 8001


def test_a_tighter_budget_gives_less_context_and_at_last_a_refusal_with_the_sum() -> None:
    whole = place("tiny", SMALL, QUANT, as_tiers([]), base_port=8000, budget_bytes=20 * GB)
    less = place("tiny", SMALL, QUANT, as_tiers([]), base_port=8000, budget_bytes=whole.engine.memory_bytes - 1)

    assert less.context == whole.context // 2
    with pytest.raises(
        DoesNotFit, match=r"needs \S+ [GM]B with a window of 2,048 tokens, and 0 B of the budget of 8\.4 GB is left"
    ):
        place("tiny", SMALL, QUANT, as_tiers([STANDARD, FAST]), base_port=8000, budget_bytes=9 * GB)


@pytest.mark.parametrize(
    "name", ["", "Fast", "a b", "-a", "gateway", "default", "cloud", "configure", "fast", "x" * 40]
)
def test_a_name_that_cannot_be_a_tier_is_refused(name: str) -> None:
    with pytest.raises(UsageProblem):
        place(name, SMALL, QUANT, as_tiers([FAST]), base_port=8000, budget_bytes=20 * GB)


def test_ten_tiers_are_the_most() -> None:
    many = [replace(FAST, name=f"t{number}", port=8000 + number, memory_bytes=1) for number in range(10)]
    with pytest.raises(UsageProblem, match="10 are the most"):
        place("tiny", SMALL, QUANT, as_tiers(many), base_port=8000, budget_bytes=20 * GB)


def labelled(batch: list[kinds.NewJob]) -> dict[str, list[str]]:
    return {new.label or new.kind: [*map(str, new.needs), *(f"~{one}" for one in new.after)] for new in batch}


def test_the_gateway_hears_of_a_new_tier_when_its_engine_serves() -> None:
    assert labelled(stack_jobs.add_tier("tiny", ["old"])) == {
        "old": [],
        "tiny": ["~old"],
        "configure": ["tiny"],
        "gateway": ["configure"],
    }


def test_the_gateway_hears_that_a_tier_leaves_before_its_engine_goes() -> None:
    serving = labelled(stack_jobs.remove_tiers(["fast"], serving=True))
    assert serving == {"configure": [], "gateway": ["configure"], "fast": ["~gateway"]}
    assert labelled(stack_jobs.remove_tiers(["fast"], serving=False)) == {"configure": [], "fast": []}


def test_weights_come_before_the_tier_and_one_tier_after_the_other(settled: Database, home: Home) -> None:
    wanted = StackChange(add=(("smollm2-135m", "one"), ("smollm2-135m", "two")), remove=("fast",))

    made = edit.plan(settled, home, wanted)

    assert [tier.name for tier in (*made.remaining, *made.removed, *made.new)] == ["standard", "fast", "one", "two"]
    pull = f"pull {made.new[0].engine.source}"
    assert labelled(edit.jobs(made, wanted, serving=True)) == {
        "detect": [],
        "configure": [],
        "gateway": ["configure"],
        "fast": ["~gateway"],
        pull: [],
        "assign one": ["detect", pull],
        "assign two": ["detect", pull, "~assign one"],
    }


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (StackChange(remove=("nobody",)), NotFound),
        (StackChange(remove=("standard", "fast")), UsageProblem),
        (StackChange(add=(("no-such-model-at-all", "x"),)), MlxqError),
        (StackChange(add=(("hub:own/model", "x"),)), Offline),
        (StackChange(add=(("smollm2-135m", "fast"),)), UsageProblem),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    settled: Database, home: Home, wanted: StackChange, problem: type[MlxqError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(problem):
        edit.plan(settled, home, wanted)
    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast"]


def test_without_a_stack_there_is_nothing_to_change(db: Database, home: Home) -> None:
    with pytest.raises(NotSetUp):
        edit.plan(db, home, StackChange(remove=("fast",)))


def test_a_removed_tier_serves_until_its_job_takes_it_down(settled: Database, home: Home) -> None:
    wanted = StackChange(remove=("fast",))

    edit.begin(settled, edit.plan(settled, home, wanted), wanted)

    assert [tier.name for tier in stack.tiers(settled)] == ["standard"]
    assert (service.get(settled, "fast").desired, service.get(settled, "standard").desired) == ("up", "up")


TASKS: dict[str, Any] = {"retire": assign.retire, "assign": assign.assign, "score": score.score}


@pytest.fixture
def run(settled: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Put one job in, run it as the worker does, and give its row as it is then."""
    return runner(settled, home, TASKS, monkeypatch)


def test_a_tier_that_left_the_stack_is_forgotten(run: Run, settled: Database) -> None:
    stack.replace(settled, [STANDARD])

    assert run("retire", service="fast").result == {"service": "fast", "gone": True}

    assert service.find(settled, "fast") is None


def test_a_tier_that_is_back_in_the_stack_stays(run: Run, settled: Database) -> None:
    assert run("retire", service="fast").result == {"service": "fast", "gone": False}
    assert service.get(settled, "fast").desired == "up"


CHOICE = {"standard": "qwen3.5-9b int8", "fast": "smollm2-135m " + QUANT, "longctx": "gemma-4-e4b int4"}


@pytest.mark.parametrize("hub", [True, False])
def test_the_models_that_a_person_chose_are_the_stack(run: Run, settled: Database, hub: bool) -> None:
    facts.put(settled, "hub", {"reachable": hub})

    first, again = (run("score", choice=CHOICE, pull=False, start=False) for _ in range(2))

    assert (first.state, again.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED), first.error
    assert {tier.name: f"{tier.model} {tier.quant}" for tier in stack.tiers(settled)} == CHOICE
    assert (first.result["kept"], again.result["kept"]) == (False, True)


def test_a_choice_stays_when_setup_runs_again_without_one(run: Run, settled: Database) -> None:
    facts.put(settled, "hub", {"reachable": True})
    run("score", choice=CHOICE, pull=False, start=False)

    assert run("score", pull=False, start=False).result["tiers"] == CHOICE


def test_a_choice_that_does_not_fit_changes_nothing(run: Run, settled: Database) -> None:
    ended = run("score", choice=CHOICE | {"longctx": "qwen3.5-122b-a10b int4"}, pull=False, start=False)

    assert (ended.state, ended.error_code) == (JobState.FAILED, "does_not_fit")
    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast"]


def test_keep_holds_whatever_is_there(run: Run, settled: Database) -> None:
    facts.put(settled, "hub", {"reachable": True})

    kept = run("score", keep=True, pull=False, start=False)

    assert kept.result["tiers"] == {"standard": "qwen3.5-9b int4", "fast": "qwen3.5-9b int4"}


def test_a_model_is_given_a_tier_once(run: Run, settled: Database) -> None:
    asked = {"model": "smollm2-135m", "quant": QUANT, "tier": "tiny"}

    first, second = run("assign", **asked), run("assign", **asked)

    assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED), first.error
    assert first.result["port"] == 8002
    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast", "tiny"]


def test_a_model_alone_takes_the_place_of_the_stack(run: Run, settled: Database) -> None:
    ended = run("assign", model="smollm2-135m", quant=QUANT, tier="standard", alone=True)

    assert ended.state is JobState.SUCCEEDED, ended.error
    assert [(tier.name, tier.model) for tier in stack.tiers(settled)] == [("standard", "smollm2-135m")]
    assert "retire" in {one.kind for one in job.of_chain(settled, ended.id)}


def test_an_assignment_that_does_not_fit_changes_nothing(run: Run, settled: Database) -> None:
    stack.replace(settled, [replace(STANDARD, memory_bytes=60 * GB)])

    ended = run("assign", model="smollm2-135m", quant=QUANT, tier="tiny")

    assert (ended.state, ended.error_code) == (JobState.FAILED, "does_not_fit")
    assert [tier.name for tier in stack.tiers(settled)] == ["standard"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--add", "smollm2-135m"],
        ["--as", "tiny"],
        ["--add", "a", "--add", "b", "--as", "x"],
        ["--model", "smollm2-135m", "--remove", "fast"],
        ["--remove", "fast", "--intent", "balanced"],
        ["--remove", "fast", "--no-pull"],
        ["--add", "smollm2-135m", "--as", "Not A Name"],
        ["--add", "smollm2-135m", "--as", "tiny"],
        ["--remove", "fast", "--no-input"],
        ["--model", "smollm2-135m"],
        ["--no-input"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_use_and_a_question_that_nobody_can_answer_exit_2(
    settled: Database, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = stack.tiers(settled)

    assert cli.run(["setup", *argv]) == 2

    assert "Error" in capsys.readouterr().err
    assert stack.tiers(settled) == before
    assert job.listing(settled) == []


def test_a_dry_run_shows_the_change_and_makes_none(settled: Database, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["setup", "--dry-run", "--add", "smollm2-135m", "--as", "tiny", "--remove", "fast"]
    assert cli.run([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert cli.run(argv) == 0
    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]

    assert [[tier["tier"] for tier in told[name]] for name in ("kept", "gone", "new")] == [
        ["standard"],
        ["fast"],
        ["tiny"],
    ]
    assert ["+", "tiny"] in shown
    assert ["-", "fast"] in shown
    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast"]
    assert job.listing(settled) == []


def test_a_stack_made_by_hand_stays_until_another_is_asked_for(settled: Database, home: Home) -> None:
    facts.put(settled, "stack", {"asked": {"intent": "balanced"}, "builtin": True, "budget_bytes": GB})
    wanted = StackChange(remove=("fast",))
    edit.begin(settled, edit.plan(settled, home, wanted), wanted)

    assert facts.get(settled, "stack") == {"budget_bytes": GB, "builtin": False}


def test_a_tier_that_came_while_a_person_was_asked_stays(settled: Database, home: Home) -> None:
    wanted = StackChange(remove=("fast",))
    made = edit.plan(settled, home, wanted)
    late = replace(STANDARD, name="late", port=8005)
    stack.replace(settled, [STANDARD, FAST, late])
    edit.begin(settled, made, wanted)

    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "late"]


def begin(db: Database, home: Home, **change: Any) -> StackChange:
    """Ask for a change as the command does."""
    wanted = StackChange(**change)
    edit.begin(db, edit.plan(db, home, wanted), wanted)
    return wanted


def assigned(db: Database) -> None:
    """Run every waiting job `assign`, the newest first: the weights of the older ones took longer."""
    db.run("UPDATE jobs SET state = 'queued' WHERE kind = 'assign'")
    db.run("UPDATE jobs SET priority = id WHERE kind = 'assign'")
    while held := ledger.claim(db, "ops", {"assign"}, "the worker"):
        executor.perform(kinds.KINDS["assign"], assign.assign, held)


ADDED = (("smollm2-135m", "tiny"),)


@pytest.mark.parametrize(
    ("changes", "tiers"),
    [
        ([{"add": ADDED}, {"remove": ("tiny",)}], ["standard", "fast"]),
        ([{"add": ADDED}, {"remove": ("tiny",)}, {"add": ADDED}], ["standard", "fast", "tiny"]),
        ([{"alone": "smollm2-135m"}, {"add": ADDED}], ["tiny", "standard"]),
        ([{"add": ADDED}, {"alone": "smollm2-135m"}], ["standard"]),
        ([{"remove": ("fast",)}, {"add": (("smollm2-135m", "fast"),)}, {"remove": ("fast",)}], ["standard"]),
        ([{"remove": ("fast",)}, {"add": (("smollm2-135m", "fast"),)}], ["standard", "fast"]),
    ],
    ids=["add, remove", "add, remove, add", "alone, add", "add, alone", "remove, add, remove", "remove, add"],
)
def test_the_newest_change_of_the_stack_wins_whichever_comes_to_its_turn_first(
    run: Run, settled: Database, home: Home, changes: list[dict[str, Any]], tiers: list[str]
) -> None:
    for change in changes:
        begin(settled, home, **change)

    assigned(settled)

    assert [tier.name for tier in stack.tiers(settled)] == tiers


def test_the_newest_model_for_a_tier_wins(run: Run, settled: Database, home: Home) -> None:
    begin(settled, home, add=ADDED)
    begin(settled, home, remove=("tiny",))
    begin(settled, home, add=(("qwen3.5-2b", "tiny"),))

    assigned(settled)

    assert stack.tier(settled, "tiny").model == "qwen3.5-2b"


def test_a_tier_that_an_older_change_added_after_the_plan_is_replaced(run: Run, settled: Database, home: Home) -> None:
    begin(settled, home, add=(("qwen3.5-2b", "tiny"),))
    older = place("tiny", SMALL, QUANT, stack.tiers(settled), base_port=8000, budget_bytes=20 * GB)
    stack.replace(settled, [*stack.tiers(settled), older])

    assigned(settled)

    assert {tier.name: tier.model for tier in stack.tiers(settled)} == {
        "standard": "qwen3.5-9b",
        "fast": "qwen3.5-9b",
        "tiny": "qwen3.5-2b",
    }


def test_a_change_that_comes_while_the_same_one_runs_has_it_run_again(run: Run, settled: Database, home: Home) -> None:
    begin(settled, home, add=ADDED)
    settled.run("UPDATE jobs SET state = 'queued' WHERE kind = 'assign'")
    held = ledger.claim(settled, "ops", {"assign"}, "the worker")
    assert held
    begin(settled, home, remove=("tiny",))
    begin(settled, home, add=ADDED)

    executor.perform(kinds.KINDS["assign"], assign.assign, held)
    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast"]
    assigned(settled)

    assert [tier.name for tier in stack.tiers(settled)] == ["standard", "fast", "tiny"]


def test_a_setup_that_comes_to_its_turn_after_a_newer_change_keeps_that(
    run: Run, settled: Database, home: Home
) -> None:
    older, _ = ledger.enqueue(settled, kinds.new("score", {"choice": CHOICE, "pull": False, "start": False}))
    begin(settled, home, remove=("fast",))

    held = ledger.claim(settled, "ops", {"score"}, "the worker")
    assert held
    assert held.id == older
    executor.perform(kinds.KINDS["score"], score.score, held)

    assert job.get(settled, older).state is JobState.SUCCEEDED
    assert [tier.name for tier in stack.tiers(settled)] == ["standard"]


def test_a_setup_with_other_choices_takes_the_place_of_one_that_runs(settled: Database) -> None:
    def batch(**arguments: Any) -> list[kinds.NewJob]:
        return [kinds.new("detect"), kinds.new("score", arguments, needs=["detect"])]

    first = setup.begin(settled, batch(intent="balanced"))

    assert setup.begin(settled, batch(intent="balanced")) == first
    second = setup.begin(settled, batch(intent="agent-fleet"))
    assert second != first
    assert {entry.state for entry in job.of_chain(settled, first)} == {JobState.CANCELLED}
    assert job.of_chain(settled, second)[-1].args == {"intent": "agent-fleet"}


def test_a_dry_run_in_a_fresh_home_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "fresh"))

    assert cli.run(["setup", "--dry-run", "--model", "smollm2-135m"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out
    assert not (tmp_path / "fresh").exists()


def test_the_folder_of_a_stranger_is_told_in_words(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["setup", "--dry-run", "--model", "~nobody-of-that-name/model"]) == 2
    assert "There is no folder ~nobody-of-that-name/model." in capsys.readouterr().err


def test_a_folder_that_is_in_no_catalog_becomes_a_tier(settled: Database, home: Home, tmp_path: Path) -> None:
    """Described from its files, kept as a model file of this home, and found there without asking again."""
    folder = tiny_model.make(tmp_path / "mine")
    wanted = edit.parse([str(folder)], ["tiny"], [], None)
    plan = edit.plan(settled, home, wanted)

    (tier,) = plan.new
    assert (tier.model, tier.engine.source, tier.context) == ("mine", f"file:{folder}", 4096)
    assert 300_000_000 < tier.engine.memory_bytes < GB
    (assign_job,) = [entry for entry in edit.jobs(plan, wanted, serving=True) if entry.kind == "assign"]
    model_file.keep(home, assign_job.args["described"])
    assert recommend.all_models(home)["mine"].quants["fp32"].source == f"file:{folder}"
    assert edit.plan(settled, home, wanted).described == {}


def test_a_model_file_that_the_user_took_over_stays(home: Home, tmp_path: Path) -> None:
    folder = tiny_model.make(tmp_path / "mine")
    row = description.of_folder(folder, f"file:{folder}").row
    model_file.keep(home, row)
    path = home.catalog / "mine.yaml"
    path.write_text(path.read_text().replace(model_file.MARK, "# mine").replace("fp32", "fp16"))
    model_file.keep(home, row)

    assert "fp16" in recommend.all_models(home)["mine"].quants
    with pytest.raises(UsageProblem, match="cannot be kept"):
        model_file.keep(home, {**row, "layers": "many"})


def test_two_folders_of_one_name_are_two_models(settled: Database, home: Home, tmp_path: Path) -> None:
    first, second = (tiny_model.make(tmp_path / side / "mine") for side in ("left", "right"))
    plan = edit.plan(settled, home, edit.parse([str(first), str(second)], ["one", "two"], [], None))

    assert [tier.engine.source for tier in plan.new] == [f"file:{first}", f"file:{second}"]
    assert len({tier.model for tier in plan.new}) == len(plan.described) == 2


def test_what_the_user_says_of_a_model_overrules_its_files(settled: Database, home: Home, tmp_path: Path) -> None:
    folder = tiny_model.make(tmp_path / "mine")
    options = ServingOptions(tool_parser="hermes", reasoning_parser="none", context=1024)
    wanted = edit.parse([str(folder)], ["tiny"], [], None, options)
    plan = edit.plan(settled, home, wanted)

    (tier,) = plan.new
    assert (tier.engine.tool_parser, tier.engine.reasoning_parser, tier.context) == ("hermes", None, 1024)
    (assign_job,) = [entry for entry in edit.jobs(plan, wanted, serving=True) if entry.kind == "assign"]
    assert serving_options.from_row(assign_job.args["options"]) == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServingOptions(tool_parser="hermse"), "There is no tool parser 'hermse'"),
        (ServingOptions(reasoning_parser="x"), "There is no reasoning parser 'x'"),
        (ServingOptions(context=8192), "was made for 4,096 tokens"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    options: ServingOptions, words: str, settled: Database, home: Home, tmp_path: Path
) -> None:
    folder = tiny_model.make(tmp_path / "mine")
    with pytest.raises(UsageProblem, match=words):
        edit.plan(settled, home, edit.parse([str(folder)], ["tiny"], [], None, options))


def test_options_belong_to_one_model() -> None:
    with pytest.raises(UsageProblem, match="belong to one"):
        edit.parse([], [], ["fast"], None, ServingOptions(context=1024))


def test_a_folder_without_a_model_is_refused_in_words(settled: Database, home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        edit.plan(settled, home, edit.parse([str(tmp_path / "nothing")], ["tiny"], [], None))
    with pytest.raises(NotFound, match="not a model that MLX can load"):
        edit.plan(settled, home, edit.parse([str(tmp_path)], ["tiny"], [], None))
