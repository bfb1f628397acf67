"""The front's configuration: nodes become deployments, and what an app sends becomes what the proxy may see."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from state.fleet import Node, ServedModel
from tasks.front import plan as front

ROOT = Path(__file__).parents[3]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"model": {}, "messages": {}, "stream": {}, "top_k": {}, "disable_fallbacks": {}},
}
SCHEMAS = dict.fromkeys(front.PATHS, SCHEMA)
STANDARD = ServedModel("standard", 32_768, 4, 50.0)
ATLAS = Node("atlas", "mlxq", "https://10.0.0.2:4000", authority="PEM of atlas", serves={"standard": STANDARD})
BOREAS = Node(
    "boreas",
    "mlxq",
    "https://10.0.0.3:4000",
    authority="PEM of boreas",
    serves={"standard": ServedModel("standard", 65_536, 8, 90.0), "qwen3.5-4b": ServedModel("qwen3.5-4b", 8_192, 2)},
)
BOX = Node("box", "openai", "http://10.0.0.4:8000", serves={"qwen3.5-4b": ServedModel("Qwen/Qwen3.5-4B", 0, 16)})
KEYS = {"atlas": "sk-a", "boreas": "sk-b", "box": "sk-c"}


def made(*nodes: Node, keys: dict[str, str] = KEYS, redis: str = "", own: str = "") -> front.FrontFiles:
    names = {"gpt-4o": "standard", "gpt-4o-mini": "fast", "coder": "nowhere"}
    return front.files(
        nodes, keys, schemas=SCHEMAS, names=names, ring="/home/keys.json", master="00", redis=redis, own=own
    )


def deployments(files: front.FrontFiles) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for deployment in files.proxy["model_list"]:
        groups.setdefault(deployment["model_name"], []).append(deployment["model_info"]["id"].partition("@")[2])
    return groups


def test_each_gateway_answers_the_three_tiers_and_each_node_what_it_serves() -> None:
    assert deployments(made(ATLAS, BOREAS, BOX)) == {
        "fast": ["atlas", "boreas"],
        "longctx": ["atlas", "boreas"],
        "standard": ["atlas", "boreas"],
        "qwen3.5-4b": ["boreas", "box"],
    }


def test_a_node_weighs_what_it_was_measured_and_the_mean_where_it_was_not() -> None:
    new = replace(BOX, serves={"standard": ServedModel("Qwen/Qwen3.5-4B", 0, 16)})
    entries = {entry["model_info"]["id"]: entry for entry in made(ATLAS, BOREAS, new).proxy["model_list"]}
    weights = {name: entry["litellm_params"]["weight"] for name, entry in entries.items()}
    assert {name: weights[f"standard@{name}"] for name in KEYS} == {"atlas": 50.0, "boreas": 90.0, "box": 70.0}
    assert weights["qwen3.5-4b@boreas"] == 1.0, "nothing was measured of this model"


def test_nodes_that_do_not_have_a_tier_stand_in_for_those_that_do() -> None:
    """As LiteLLM's `order` has it: the lowest of those that can be asked."""
    fast = replace(ATLAS, serves={"fast": STANDARD})
    order = {
        entry["model_info"]["id"]: entry["litellm_params"].get("order")
        for entry in made(fast, BOREAS).proxy["model_list"]
    }

    assert order == {
        "fast@atlas": 1, "fast@boreas": 2, "standard@atlas": 2, "standard@boreas": 1, "qwen3.5-4b@boreas": 1,
        "longctx@atlas": None, "longctx@boreas": None,
    }, "no node has longctx: all are alike"  # fmt: skip


def test_a_node_is_asked_at_its_address_for_what_it_calls_the_model_with_its_own_key() -> None:
    entries = {entry["model_info"]["id"]: entry for entry in made(ATLAS, BOX).proxy["model_list"]}
    asked = {name: entries["qwen3.5-4b@box"]["litellm_params"][name] for name in ("model", "api_base", "api_key")}
    assert asked == {"model": "openai/Qwen/Qwen3.5-4B", "api_base": "http://10.0.0.4:8000/v1", "api_key": "sk-c"}
    assert entries["standard@atlas"]["model_info"]["max_input_tokens"] == STANDARD.context
    assert "max_input_tokens" not in entries["qwen3.5-4b@box"]["model_info"]


def test_a_node_that_drains_that_lied_or_whose_key_is_gone_is_not_asked() -> None:
    assert not made(replace(ATLAS, changed_by=7)).proxy["model_list"], "a job changes it"
    liar = replace(BOREAS, missing=("qwen3.5-4b", "longctx"))
    files = made(replace(ATLAS, state="draining"), liar, BOX, keys={"atlas": "sk-a", "boreas": "sk-b"})
    assert deployments(files) == {"fast": ["boreas"], "standard": ["boreas"]}
    assert files.nodes == {"https://10.0.0.3:4000": "PEM of boreas"}


def test_a_request_is_asked_of_each_other_node_before_it_fails() -> None:
    retries = [made(*nodes).proxy["router_settings"]["num_retries"] for nodes in ((), (ATLAS,), (ATLAS, BOREAS, BOX))]
    assert retries == [0, 0, 2]


def test_names_lead_only_to_what_there_is_and_what_litellm_would_obey_passes_nowhere() -> None:
    policy = made(ATLAS).policy
    assert policy["names"] == {"gpt-4o": "standard", "gpt-4o-mini": "fast"}
    assert set(policy["routes"]) == {path for paths in front.PATHS.values() for path in paths}
    assert all("disable_fallbacks" not in schema["properties"] for schema in policy["routes"].values())


def test_of_a_change_only_what_a_running_front_cannot_take_over_restarts_it() -> None:
    one, two, shared = made(ATLAS), made(ATLAS, BOREAS), made(ATLAS, redis="redis://10.0.0.5:6379/0")
    assert front.settled(one.proxy) == front.settled(two.proxy)
    assert front.settled(one.proxy) != front.settled(shared.proxy)
    url = "redis://10.0.0.5:6379/0?socket_timeout=0.2&socket_connect_timeout=0.2"
    assert shared.proxy["general_settings"]["coordination_redis"] == {"url": url}
    assert shared.proxy["router_settings"]["redis_url"] == url


def test_a_redis_that_does_not_answer_holds_no_request_up_unless_its_owner_says_so() -> None:
    assert front.bounded("") == ""
    assert front.bounded("rediss://:p%40ss@cache:6380/1?ssl_cert_reqs=none&socket_timeout=2") == (
        "rediss://:p%40ss@cache:6380/1?socket_timeout=2&socket_connect_timeout=0.2&ssl_cert_reqs=none"
    )


def test_what_this_machine_answers_for_the_front_is_counted_by_the_front_alone() -> None:
    entries = made(ATLAS, BOREAS, own="atlas").proxy["model_list"]
    marked = [entry["model_info"]["id"] for entry in entries if "extra_headers" in entry["litellm_params"]]
    assert marked == ["fast@atlas", "longctx@atlas", "standard@atlas"]


def test_no_secret_is_in_the_command_line_or_the_environment() -> None:
    argv = front.argv("/env/python", "/x/front_program.py", "/home/front", 4100, host="10.0.0.1", tls="/home/tls")
    environment = front.environment(base={"PATH": "/bin", "OPENAI_API_KEY": "sk-x"}, home="/home", generation=3)
    assert argv[-4:] == ["--host", "10.0.0.1", "--tls", "/home/tls"]
    assert not any("KEY" in name or "sk-" in value for name, value in environment.items())


def test_the_proxy_is_the_release_that_mlxq_calls_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"litellm=={front.LITELLM}" in project["project"]["dependencies"]
    lock = (ROOT / f"tasks/front/locks/litellm-proxy-{front.LITELLM}.txt").read_text()
    assert f"\nlitellm=={front.LITELLM} \\\n    --hash=sha256:" in lock
    assert not {"torch", "prisma", "litellm-enterprise"} & {line.partition("==")[0] for line in lock.splitlines()}
