"""The child that brings weights: plan, fetch, verify, or make the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from state.errors import Internal
from tasks.system.child import Report, answer
from tasks.weights import builtin, builtin_embedding, description, install, integrity
from tasks.weights.source import PullRequest


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Do what the request names in `do`."""
    match request.pop("do"):
        case "plan":
            return install.plan(request["source"])
        case "describe":
            return description.of_source(request["source"])
        case "fetch":
            return install.fetch(PullRequest(**request), report)
        case "verify":
            return {"damaged": integrity.damaged(Path(request["folder"]), report)}
        case "builtin" | "builtin_embedding" as model:
            maker = builtin if model == "builtin" else builtin_embedding
            maker.make(Path(request["models"]), report)
            return {}
        case "check_catalog":
            from tasks.weights import catalog_check

            return catalog_check.whole(Path(request["overlay"]), offline=request["offline"])
        case unknown:
            raise Internal(f"The fetcher knows no {unknown!r}.")


if __name__ == "__main__":
    answer(work)
