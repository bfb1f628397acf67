"""How a part of LiteLLM is replaced that has no setting.

Only for what takes a measured share of every request's time and does nothing here. A part that is gone or asks for
something else, as in another version, is left as it is: the gateway is slower then, and nothing else.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger("mlxq.gateway")


def replace(owner: object, name: str, known: Sequence[str], ours: Callable[..., Any]) -> bool:
    """Put `ours` in the place of a function that takes the arguments `known`; tell whether it is that one."""
    theirs = getattr(owner, name, None)
    if theirs is None or tuple(inspect.signature(theirs).parameters) != tuple(known):
        log.warning("This LiteLLM has another %s than the one known, and keeps it.", name)
        return False
    setattr(owner, name, ours)
    return True
