export UV_FROZEN := "true"

default: check

# Everything that must pass before a commit.
check:
    uv run ruff format --check
    uv run ruff check
    uv run pyright
    uv run lint-imports --no-cache
    uv run codespell
    uv run cog --check -I docs README.md ARCHITECTURE.md CONTRIBUTING.md docs/*.md
    uv run pytest tests/unit tests/docs

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
