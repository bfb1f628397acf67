"""Write models.json and chips.json from the YAML files: `python -m catalog.compile`, after any of them changed."""

from __future__ import annotations

import json
from typing import Any

from catalog import chips, load


def models() -> str:
    """Return what models.json must hold. Raises problems.BadModelFile."""
    return _text(load.rows(load.SHIPPED))


def chip_table() -> str:
    """Return what chips.json must hold."""
    return _text(chips.source())


def _text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Write both."""
    load.COMPILED.write_text(models(), encoding="utf-8")
    chips.COMPILED.write_text(chip_table(), encoding="utf-8")


if __name__ == "__main__":
    main()
