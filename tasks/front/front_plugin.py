"""What LiteLLM's proxy asks of mlxq: what a key may do, and who is told what was used.

Loaded by front_program.py in the proxy's own environment, which has no mlxq: it imports nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth

Json = dict[str, Any]
KEY = "mlxq.key"
"""Where a request's scope has the key that it was sent with, a front_door.AppKey."""
WRITE_S = 2.0


async def authorize(request: Any, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 (LiteLLM's signature)
    """Return what a key may do, as the proxy has it (`general_settings.custom_auth`); its rate is kept there."""
    key = request.scope.get(KEY)
    if key is None:
        raise PermissionError("The request did not come through mlxq's door.")
    return UserAPIKeyAuth(api_key=key.digest, key_alias=key.name, models=list(key.tiers), rpm_limit=key.rpm)


@dataclass(eq=False)  # LiteLLM keeps its callbacks in sets
class NodeChoice(CustomLogger):
    """Leaves LiteLLM one node to ask; its last callback, after that which keeps conversations on their nodes."""

    under_way: Any
    """A node_choice.UnderWay."""

    def __post_init__(self) -> None:
        """Be one of LiteLLM's callbacks."""
        super().__init__()

    async def async_filter_deployments(
        self,
        model: str,  # noqa: ARG002 (LiteLLM's signature)
        healthy_deployments: list[Any],
        messages: Any,  # noqa: ARG002 (LiteLLM's signature)
        request_kwargs: Json | None = None,  # noqa: ARG002 (LiteLLM's signature)
        parent_otel_span: Any = None,  # noqa: ARG002 (LiteLLM's signature)
    ) -> list[Any]:
        """Return the deployment that is to be asked, of each `order` there is."""
        return self.under_way.choose(healthy_deployments)

    async def async_pre_call_deployment_hook(self, kwargs: Json, call_type: Any) -> Json | None:  # noqa: ARG002 (LiteLLM's signature)
        """Note which node is asked, and change nothing."""
        info: Json = kwargs.get("model_info") or {}
        if info.get("id"):
            self.under_way.sent(str(info["id"]))
        return None


@dataclass
class Used:
    """The sums of one day (UTC), key and group, by the names of state.metrics.usage.Usage."""

    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    first_byte_seconds: float = 0.0
    cached_tokens: int = 0


@dataclass(eq=False)  # LiteLLM keeps its callbacks in sets
class UsageLog(CustomLogger):
    """Counts what passed, and leaves the sums in a folder, a file each two seconds; the worker adds them up."""

    folder: Path
    _sums: dict[tuple[str, str, str], Used] = field(default_factory=dict[tuple[str, str, str], Used])
    _writing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        """Be one of LiteLLM's callbacks."""
        super().__init__()

    async def async_log_success_event(self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ARG002 (LiteLLM's signature)
        """Count an answer."""
        self._count(kwargs, failed=False)

    async def async_log_failure_event(self, kwargs: Json, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Count nothing: a node that failed is asked again elsewhere, and the proxy tells of what failed for good."""

    async def async_post_call_failure_hook(
        self,
        request_data: Json,
        original_exception: Exception,  # noqa: ARG002 (LiteLLM's signature)
        user_api_key_dict: UserAPIKeyAuth,
        traceback_str: str | None = None,  # noqa: ARG002 (LiteLLM's signature)
    ) -> None:
        """Count a request that got no answer from any node."""
        used = self._sum(str(user_api_key_dict.key_alias or ""), str(request_data.get("model", "")))
        used.requests += 1
        used.failed += 1

    def _count(self, kwargs: Json, *, failed: bool) -> None:
        entry: Json = kwargs.get("standard_logging_object") or {}
        metadata: Json = entry.get("metadata") or {}
        used = self._sum(str(metadata.get("user_api_key_alias") or ""), str(entry.get("model_group") or ""))
        used.requests += 1
        used.failed += failed
        used.prompt_tokens += int(entry.get("prompt_tokens") or 0)
        used.completion_tokens += int(entry.get("completion_tokens") or 0)
        counted: Json = metadata.get("usage_object") or {}
        details: Json = counted.get("prompt_tokens_details") or {}
        used.cached_tokens += int(details.get("cached_tokens") or 0)
        began, ended = float(entry.get("startTime") or 0.0), float(entry.get("endTime") or 0.0)
        used.seconds += max(0.0, ended - began)
        used.first_byte_seconds += max(0.0, float(entry.get("completionStartTime") or ended) - began)

    def _sum(self, key: str, group: str) -> Used:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon())
        return self._sums.setdefault((time.strftime("%Y-%m-%d", time.gmtime()), key, group), Used())

    async def _write_soon(self) -> None:
        await asyncio.sleep(WRITE_S)
        self.write()

    def write(self) -> None:
        """Write what was counted since the last time, if anything."""
        sums, self._sums = self._sums, {}
        if sums:
            rows = [{"day": day, "key": key, "tier": group, **vars(used)} for (day, key, group), used in sums.items()]
            file = self.folder / f"{time.time_ns()}-{os.getpid()}.json"
            draft = file.with_suffix(".partial")
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(json.dumps(rows), encoding="utf-8")
            draft.replace(file)
