import pytest

from tasks.engines.vllm_mlx import RULES
from tasks.plan import exit_causes
from tasks.plan.exit_causes import explain

BANNER = "=" * 60 + "\nSECURITY CONFIGURATION\n" + "=" * 60 + "\n"

BROKEN_ON_PURPOSE = [
    (1, "RuntimeError: Model '/x/y' not found in local cache. Use without --offline.", "weights_missing", True),
    (1, "Repo id must be in the form 'repo_name' or 'namespace/repo_name'", "weights_missing", True),
    (3, "RuntimeError: [load_safetensors] Invalid json: incomplete download or corrupt file", "damaged", True),
    (3, "FileNotFoundError: No safetensors found in /x/y", "weights_missing", True),
    (3, "ValueError: Model type bert_x not supported.", "unsupported", True),
    (1, "Error: Cannot determine whether '/x' is a multimodal model", "damaged", True),
    (3, "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8001)", "port_taken", True),
    (1, "192.0.2.1:4000: [Errno 99] Cannot assign requested address", "foreign_address", True),
    (1, "192.0.2.1:4000: [Errno 49] Can't assign requested address", "foreign_address", True),
    (1, "0.0.0.0:4000: [Errno 98] Address already in use", "port_taken", True),
    (3, "ERROR: [Errno 48] error while attempting to bind on address", "port_taken", True),
    (2, "vllm-mlx serve: error: argument --port: invalid int value: 'x'", "bad_argument", True),
    (1, "Error: --max-tokens cannot exceed --max-request-tokens", "bad_argument", True),
    (1, "ModuleNotFoundError: No module named 'vllm_mlx'", "not_installed", True),
    (127, "/bin/sh: 1: /venv/bin/python: not found", "not_installed", True),
    (134, "memory allocation of 18874368 bytes failed", "out_of_memory", False),
    (134, "Command buffer: kIOGPUCommandBufferCallbackErrorOutOfMemory", "out_of_memory", False),
    (1, "RuntimeError: [metal::malloc] Resource limit (499000) exceeded", "out_of_memory", False),
    (134, "Unable to reach MTLCompilerService. The process is unavailable: error 32", "metal_unreachable", False),
    (1, "RuntimeError: Unable to reach MTLCompilerService (141)", "metal_unreachable", False),
    (1, "OSError: [Errno 28] No space left on device", "disk_full", False),
    (1, "ValueError: not allowed to raise maximum limit", "open_files", True),
    (1, "ValueError: current limit exceeds maximum limit", "open_files", True),
    (137, "", "killed", False),
    (134, "Fatal Python error: Aborted", "aborted", False),
    (139, "", "aborted", False),
    (143, "", "terminated", False),
    (0, "", "ended", False),
    (3, "something new", "failed", False),
    (None, "", "unknown", False),
]


@pytest.mark.parametrize(("code", "log", "expected", "permanent"), BROKEN_ON_PURPOSE)
def test_every_known_end_has_its_cause(code: int | None, log: str, expected: str, permanent: bool):
    cause = explain(code, BANNER + log + "\n", "fast", RULES)

    assert (cause.code, cause.permanent) == (expected, permanent)
    assert cause.sentence.endswith(".")
    assert "{" not in cause.sentence + cause.hint


def test_the_cause_names_what_is_unsupported():
    assert explain(3, "ValueError: Model type mamba9 not supported.", "fast", RULES).sentence == (
        "The engine does not know models of type mamba9."
    )


def test_the_engines_own_words_are_passed_on():
    assert explain(2, "serve: error: unrecognized arguments: --new-flag", "fast", RULES).sentence == (
        "The engine refused its command line: unrecognized arguments: --new-flag."
    )


def test_a_kill_without_memory_left_is_the_systems():
    assert explain(137, "", "fast", memory_short=True).code == exit_causes.OOM
    assert explain(None, "", "fast", memory_short=True).code == exit_causes.OOM
    assert explain(3, "ValueError: Model type x not supported.", "fast", RULES, memory_short=True).code == "unsupported"


def test_hints_name_the_service():
    assert explain(137, "", "longctx").hint == "mlxq logs longctx"
