import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from state.errors import UsageProblem
from state.stack import Defaults, Engine, Tier, alone
from tasks.gateway.routes import read
from tasks.plan import gateway

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "gateway.yaml"


def tier(name: str, port: int, context: int) -> Tier:
    engine = Engine(
        name=name,
        model="qwen3-4b",
        quant="int4",
        source="hub:org/name",
        port=port,
        context=context,
        memory_bytes=2**32,
        cache_bytes=2**29,
        concurrency=8,
    )
    return alone(engine)


STANDARD = tier("standard", 8000, 32_768)
FAST = tier("fast", 8001, 8_192)
LONGCTX = tier("longctx", 8002, 131_072)
TIERS = [STANDARD, FAST, LONGCTX]


CONTEXTS = {tier.name: tier.context for tier in TIERS}


def test_configuration_is_exactly_this():
    """A change of the gateway's configuration restarts it: it is made on purpose or not at all."""
    made = gateway.configuration(TIERS, cloud_model="qwen/qwen3.5-9b")
    assert made == yaml.safe_load(SNAPSHOT.read_text())


def test_an_overflow_never_falls_to_a_smaller_window_first():
    assert gateway.order("fast", CONTEXTS) == ["standard", "longctx"]
    assert gateway.order("standard", CONTEXTS) == ["longctx", "fast"]
    assert gateway.order("longctx", CONTEXTS) == ["standard", "fast"]


def test_nothing_points_out_of_the_machine_without_a_cloud_model():
    made = json.dumps(gateway.configuration(TIERS))
    assert "cloud" not in made.lower()
    assert "openrouter" not in made.lower()


def test_the_cloud_comes_last_everywhere():
    routes = read(gateway.configuration(TIERS, cloud_model="qwen/qwen3.5-9b"), "cpu")
    for tier in CONTEXTS:
        assert routes.chain(tier)[0] == tier
        assert routes.chain(tier)[-1] == "cloud"
        assert sorted(routes.chain(tier)) == ["cloud", "fast", "longctx", "standard"]


def test_an_alias_of_an_absent_tier_goes_to_the_first():
    assert gateway.configuration([LONGCTX])["names"]["gpt-4o-mini"] == "longctx"


def test_a_tier_named_like_an_alias_keeps_its_name():
    made = gateway.configuration([tier("default", 8000, 4096), FAST])
    assert "default" not in made["names"]
    assert read(made, "cpu").tier("default") == "default"


@pytest.mark.parametrize(
    ("asked", "found"),
    [("claude-opus-9", "standard"), ("claude-3-haiku-x", "fast"), ("gpt-4o", "standard"), ("gpt-9", None), ("*", None)],
)
def test_the_longer_of_two_patterns_counts(asked: str, found: str | None):
    assert read(gateway.configuration(TIERS), "cpu").tier(asked) == found


def test_origins_are_there_only_when_they_are_set():
    assert "allowed_origins" not in gateway.configuration(TIERS)
    assert gateway.configuration(TIERS, allowed_origins=["http://a"])["allowed_origins"] == ["http://a"]


def test_a_persons_own_names_lie_over_ours():
    made = gateway.aliases({"gpt-4o": "longctx", "o3*": "fast"}, TIERS)
    assert (made["gpt-4o"], made["o3*"], made["default"]) == ("longctx", "fast", "standard")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"o3": "fats"}, "no such tier: standard, fast, longctx"),
        ({"fast": "standard"}, "own"),
        ({"cloud": "fast"}, "own"),
    ],
)
def test_a_name_that_leads_nowhere_or_is_taken_is_refused(own: dict[str, str], said: str):
    with pytest.raises(UsageProblem, match=said):
        gateway.aliases(own, TIERS)


def test_a_lone_tier_is_its_own_chain():
    assert read(gateway.configuration([STANDARD], aliases={}), "cpu").chain("standard") == ["standard"]


def test_no_tier_is_refused():
    with pytest.raises(ValueError, match="at least one tier"):
        gateway.configuration([])


def test_argv_is_exactly_this():
    assert gateway.argv("/venv/bin/python", "/home/me/.mlxq/gateway.yaml", 4000) == [
        *("/venv/bin/python", "-P", "-m", "tasks.gateway"),
        *("/home/me/.mlxq/gateway.yaml", "4000", "--host", "127.0.0.1"),
    ]


def told(**secrets: str) -> dict[str, str]:
    base = {"PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1", "OPENAI_API_KEY": "sk-mine", "DATABASE_URL": "postgres://"}
    return gateway.environment(secrets, base=base, home="/home/me/.mlxq", backend="cpu", generation=7)


def test_environment_keeps_out_what_is_not_the_gateways():
    """A stray DATABASE_URL would give LiteLLM another mind; without bytecode it is half as fast."""
    assert not {"DATABASE_URL", "OPENAI_API_KEY", "PYTHONDONTWRITEBYTECODE"} & set(told())


def test_environment_marks_the_process_as_ours():
    marks = {"MLXQ_HOME": "/home/me/.mlxq", "MLXQ_SERVICE": "gateway", "MLXQ_GENERATION": "7"}
    assert marks.items() <= told().items()


def test_environment_passes_only_keys_it_knows():
    made = told(LITELLM_MASTER_KEY="a", MLXQ_TIER_KEY="b", OPENROUTER_API_KEY="c", PATH="/tmp/evil")
    assert (made["LITELLM_MASTER_KEY"], made["MLXQ_TIER_KEY"], made["OPENROUTER_API_KEY"]) == ("a", "b", "c")
    assert made["PATH"] == "/bin"


MAIN = STANDARD.engine
SHARED = [
    STANDARD,
    Tier("fast", MAIN, Defaults(temperature=0.2, max_tokens=512, thinking=False)),
    Tier("longctx", MAIN),
    Tier("coder", replace(FAST.engine, name="coder")),
]


def stopped(*names: str) -> list[Tier]:
    return [replace(tier, desired="down") if tier.name in names else tier for tier in SHARED]


def test_tiers_that_share_an_engine_are_written_with_what_is_their_own():
    made = gateway.configuration(SHARED)
    assert list(made["engines"]) == ["standard", "coder"]
    assert made["tiers"] == {
        "standard": {"engine": "standard"},
        "fast": {"engine": "standard", "defaults": {"max_tokens": 512, "temperature": 0.2, "thinking": False}},
        "longctx": {"engine": "standard"},
        "coder": {"engine": "coder"},
    }
    assert made["names"]["gpt-4o-mini"] == "fast"


def test_a_stopped_tier_is_written_down_only_where_its_engine_may_run_for_others():
    made = gateway.configuration(stopped("fast", "coder"))
    assert [name for name, tier in made["tiers"].items() if tier.get("stopped")] == ["fast"]


@pytest.mark.parametrize(
    ("tier", "down", "chain"),
    [
        ("standard", (), ["standard", "coder"]),
        ("fast", (), ["fast", "coder"]),
        ("coder", (), ["coder", "standard"]),
        ("fast", ("fast",), ["standard", "coder"]),
        ("coder", ("standard",), ["coder", "fast"]),
        ("fast", ("standard", "fast"), ["longctx", "coder"]),
        ("fast", ("standard", "fast", "longctx"), ["coder"]),
    ],
)
def test_a_chain_has_one_tier_of_each_engine_and_none_that_is_stopped(tier: str, down: tuple[str], chain: list[str]):
    routes = read(gateway.configuration(stopped(*down)), "cpu")
    assert routes.chain(tier) == chain
    assert len({routes.engine(name) for name in routes.chain(tier)}) == len(chain)


def test_a_route_has_its_engines_port_and_its_own_defaults():
    routes = read(gateway.configuration(SHARED), "cpu")
    fast = routes.tiers["fast"]
    assert (fast.name, fast.engine, fast.port, fast.context) == ("fast", "standard", 8000, 32_768)
    assert fast.defaults == {"max_tokens": 512, "temperature": 0.2, "thinking": False}
    assert routes.tiers["longctx"].defaults == {}
