import json
from pathlib import Path

import pytest
import yaml

from state.errors import UsageProblem
from state.stack import Tier
from tasks.plan import gateway

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "litellm.yaml"


def tier(name: str, port: int, context: int) -> Tier:
    return Tier(
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


STANDARD = tier("standard", 8000, 32_768)
FAST = tier("fast", 8001, 8_192)
LONGCTX = tier("longctx", 8002, 131_072)
TIERS = [STANDARD, FAST, LONGCTX]


def chains(made: dict[str, object], key: str = "fallbacks") -> dict[str, list[str]]:
    routing = made["router_settings"]
    assert isinstance(routing, dict)
    return {name: names for chain in routing[key] for name, names in chain.items()}


def names(made: dict[str, object]) -> list[str]:
    models = made["model_list"]
    assert isinstance(models, list)
    return [model["model_name"] for model in models]


def test_configuration_is_exactly_this():
    """A change of the gateway's configuration restarts it: it is made on purpose or not at all."""
    made = gateway.configuration(TIERS, cloud_model="qwen/qwen3.5-9b")
    assert made == yaml.safe_load(SNAPSHOT.read_text())


def test_an_overflow_never_falls_to_a_smaller_window_first():
    assert chains(gateway.configuration(TIERS))["fast"] == ["standard", "longctx"]
    assert chains(gateway.configuration(TIERS))["standard"] == ["longctx", "fast"]
    assert chains(gateway.configuration(TIERS), "context_window_fallbacks") == {
        "standard": ["longctx"],
        "fast": ["standard", "longctx"],
        "default": ["longctx"],
        "gpt-4o": ["longctx"],
        "gpt-4o-mini": ["standard", "longctx"],
        "claude-*": ["longctx"],
        "claude-*haiku*": ["standard", "longctx"],
    }


def test_every_name_a_client_may_send_has_its_own_fallbacks():
    """LiteLLM's aliases inherit none, and a pattern is looked up as `*`."""
    made = gateway.configuration(TIERS)
    assert set(chains(made)) == {*names(made), "*"}


def test_nothing_points_out_of_the_machine_without_a_cloud_model():
    made = json.dumps(gateway.configuration(TIERS))
    assert "cloud" not in made.lower()
    assert "openrouter" not in made.lower()


def test_the_cloud_comes_last_everywhere():
    made = gateway.configuration(TIERS, cloud_model="qwen/qwen3.5-9b")
    for key in ("fallbacks", "context_window_fallbacks"):
        for chain in chains(made, key).values():
            assert chain.index("cloud") == len(chain) - 1


def test_an_alias_of_an_absent_tier_goes_to_the_first():
    made = gateway.configuration([LONGCTX])
    targets = {m["model_name"]: m["litellm_params"]["model"] for m in made["model_list"]}
    assert targets["gpt-4o-mini"] == "openai/longctx"


def test_a_tier_named_like_an_alias_keeps_its_name():
    made = gateway.configuration([tier("default", 8000, 4096), FAST])
    assert names(made).count("default") == 1


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


def test_a_lone_tier_has_no_empty_fallbacks():
    made = gateway.configuration([STANDARD], aliases={})
    assert chains(made) == {"*": ["standard"]}
    assert chains(made, "context_window_fallbacks") == {}


def test_no_tier_is_refused():
    with pytest.raises(ValueError, match="at least one tier"):
        gateway.configuration([])


def test_argv_is_exactly_this():
    assert gateway.argv("/venv/bin/python", "/home/me/.mlxq/litellm.yaml", 4000) == [
        *("/venv/bin/python", "-P", "-m", "tasks.gateway"),
        *("/home/me/.mlxq/litellm.yaml", "4000", "--host", "127.0.0.1"),
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
