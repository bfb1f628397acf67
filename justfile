export UV_FROZEN := "true"

default: check

# All that must hold before a commit; under a minute.
check:
    uv run ruff format --check
    uv run ruff check
    uv run pyright
    uv run lint-imports --no-cache
    uv run codespell
    uv run cog --check -I docs README.md ARCHITECTURE.md docs/*.md
    uv run pytest tests/unit tests/docs

# The real engine and the real gateway.
contract:
    uv run pytest tests/contract

# The page, in the system's Chromium.
browser:
    uv run pytest tests/browser

# Kill it, fill the disk, stop the clock.
chaos:
    uv run pytest tests/chaos

# Build the wheel, take the sources away, run it from a hostile folder.
wheel:
    uv run pytest tests/contract/test_wheel.py

format:
    uv run ruff format
    uv run ruff check --fix

# Write anew what the documents take from the code.
docs:
    uv run cog -r -I docs README.md ARCHITECTURE.md docs/*.md
