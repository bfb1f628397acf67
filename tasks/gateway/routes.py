"""Which names a caller may ask for, and the tier behind each; read from LiteLLM's own configuration."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Names:
    """The model names of a configuration."""

    tiers: Mapping[str, str]
    """Name or pattern -> tier."""
    places: Mapping[tuple[str, int | None], str]
    """Host and port -> tier."""
    contexts: Mapping[str, int]
    """Tier -> its context in tokens; a host elsewhere knows its own."""
    embeds: bool
    """Whether a model makes embeddings."""

    @property
    def largest(self) -> int:
        """The largest tier's context in tokens."""
        return max(self.contexts.values(), default=0)

    def tier(self, asked: str) -> str | None:
        """Give the tier behind a name, or None. Of two patterns the longer one counts, as LiteLLM has it.

        Raises TypeError for what is no name.
        """
        if not isinstance(asked, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a client's JSON
            raise TypeError
        if asked in self.tiers:
            return self.tiers[asked]
        fitting = [name for name in self.tiers if "*" in name and fnmatch.fnmatchcase(asked, name)]
        return self.tiers[max(fitting, key=len)] if fitting else None


def names(configuration: Mapping[str, Any], environment: Mapping[str, str]) -> Names:
    """Read the names out of litellm.yaml's content; an api_base may stand in the environment."""
    models: list[dict[str, Any]] = configuration["model_list"]
    return Names(
        tiers={model["model_name"]: _tier(model) for model in models},
        places={_place(model["litellm_params"]["api_base"], environment): _tier(model) for model in models},
        contexts={
            _tier(model): int(model["model_info"]["max_input_tokens"])
            for model in models
            if "max_input_tokens" in model["model_info"]
        },
        embeds=any(model["model_info"].get("mode") == "embedding" for model in models),
    )


def _tier(model: Mapping[str, Any]) -> str:
    return str(model["model_info"]["id"]).partition("@")[0]


def _place(base: str, environment: Mapping[str, str]) -> tuple[str, int | None]:
    """Give host and port as httpx sees them: a scheme's own port is None."""
    if base.startswith("os.environ/"):
        base = environment[base.removeprefix("os.environ/")]
    url = urlsplit(base)
    return url.hostname or "", url.port
