"""Write catalog/models.json from the model files: `python -m catalog.compile`, after any of them changed."""

from __future__ import annotations

import json

from catalog.load import COMPILED, SHIPPED, rows


def text() -> str:
    """Return what models.json must hold. Raises problems.BadModelFile."""
    return json.dumps(rows(SHIPPED), ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Write it."""
    COMPILED.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
