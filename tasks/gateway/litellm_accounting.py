"""What LiteLLM 1.106.2 does for every request, and nobody here reads.

The door counts requests and tokens, and the purse adds prices up. Successes decide nothing about a tier's rest, as
`allowed_fails` is set; and there are no limits of tokens or requests a minute to compare a tier's use with.
"""

from __future__ import annotations

from typing import Any

from litellm import utils
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.router import Router

from tasks.gateway.litellm_patch import replace

_ACCOUNT = ("result", "start_time", "end_time")


def spare() -> None:
    """Leave out the record of each success for loggers, its price, and its share in the tier's use."""
    more = ("is_completion_with_fallbacks", "is_litellm_internal_call")
    replace(utils, "_dispatch_success_logging", ("logging_obj", *_ACCOUNT, *more), _nothing)
    more = ("cache_hit", "prefer_async_handlers", "kwargs")
    replace(Logging, "dispatch_success_handlers", ("self", *_ACCOUNT, *more), _nothing_later)
    more = ("cache_hit", "litellm_model_name", "router_model_id")
    replace(Logging, "response_cost_calculator", ("self", "result", *more), _no_price)
    known = ("self", "response", "request_kwargs")
    replace(Router, "increment_deployment_usage_for_response", known, _nothing_later)


def _nothing(*_: Any, **__: Any) -> None:
    pass


async def _nothing_later(*_: Any, **__: Any) -> None:
    pass


def _no_price(*_: Any, **__: Any) -> float:
    return 0.0
