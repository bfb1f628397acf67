export UV_FROZEN := "true"

default: check

# Everything that must pass before a commit; about a minute.
check:
    uv run ruff format --check
    uv run ruff check
    uv run pyright
    uv run pyright -p tests
    uv run pyright --pythonplatform Darwin
    uv run lint-imports --no-cache
    uv run codespell
    uv run cog --check -I docs README.md ARCHITECTURE.md CONTRIBUTING.md docs/*.md
    uv run pytest tests/unit tests/docs

# What whoever has just cloned runs: first light with the real engine and gateway, the unit tests, the documents.
test:
    uv run pytest

# Every test.
test-all:
    uv run pytest tests

# Real processes: workers, services, signals, terminals.
process:
    uv run pytest tests/process

# The real engine and the real gateway.
contract:
    uv run pytest tests/contract

# The page, in Chromium.
browser:
    uv run pytest tests/browser

# Killed processes, full disks, changed clocks.
chaos:
    uv run pytest tests/chaos

# Build the wheel, remove the sources, run it in a folder with a tasks.py of its own.
wheel:
    uv run pytest tests/contract/test_wheel.py

format:
    uv run ruff format
    uv run ruff check --fix

# Update the generated parts of the documents.
docs:
    uv run cog -r -I docs README.md ARCHITECTURE.md CONTRIBUTING.md docs/*.md
    uv run python docs/generate.py

# Say which pins are behind the package index.
pins:
    uv run python tests/support/pins.py

# Make the lock of an engine's own environment anew, e.g. `just lock-engine rapid-mlx-0.16.10`.
lock-engine NAME:
    uv pip compile tasks/engines/locks/{{NAME}}.in --override tasks/engines/locks/overrides.txt --universal \
        --python-version 3.11 --generate-hashes --no-build --no-header -q -o tasks/engines/locks/{{NAME}}.txt
    uv run python tests/support/engine_lock.py tasks/engines/locks/{{NAME}}.txt

# Make the lock by which an upgrade installs this version of mlxq, from what uv.lock has tested.
lock-own:
    uv export --no-default-groups --no-emit-project --no-header --no-annotate -q -o tasks/upgrade/lock.txt
    uv run python tests/support/engine_lock.py tasks/upgrade/lock.txt

# Make the lock by which vllm-mlx is installed where mlxq's wheel runs, from what uv.lock has tested.
lock-own-engine:
    uv export --only-group engine --no-header --no-annotate -q -o tasks/engines/locks/vllm-mlx-0.6.0.txt
    uv run python tests/support/engine_lock.py tasks/engines/locks/vllm-mlx-0.6.0.txt
