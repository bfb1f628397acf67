"""LiteLLM's question who asks, answered from the same ring of keys as the door's.

LiteLLM first looks for keys in six headers, and for budgets and teams that only a database has. The gateway puts
`caller` in the place of all that; where LiteLLM asks itself all the same, it finds `user_api_key_auth` by its name in
litellm.yaml (general_settings.custom_auth).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fastapi import Request
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

from state.keys import place
from state.paths import Home
from state.secrets import MASTER
from tasks.gateway.api_keys import Ring


@cache
def ring() -> Ring:
    """Give this process's keys."""
    return Ring(place(Home(Path(os.environ["MLXQ_HOME"]))), os.environ[MASTER])


async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 - LiteLLM passes it
    """Give LiteLLM the caller's name and role. Raises ProxyException (401) for a key that is wrong or revoked."""
    key = ring().find(api_key.removeprefix("Bearer "))
    if key is None:
        raise ProxyException(message="The key is not valid.", type="authentication_error", param=None, code=401)
    role = LitellmUserRoles.PROXY_ADMIN if ring().is_master(key) else LitellmUserRoles.INTERNAL_USER
    return UserAPIKeyAuth(api_key=key.digest, key_alias=key.name, user_role=role)


async def caller(request: Request) -> UserAPIKeyAuth:
    """Say who asks. Raises as `user_api_key_auth` does."""
    return await user_api_key_auth(request, request.headers.get("authorization", ""))
