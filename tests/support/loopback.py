"""What httpx offers, for servers on loopback.

A client that loads the certificates of the world's authorities costs 30 ms of CPU, and `httpx.get` makes one for each
request; a wait that asks again and again kept a processor busy with that. Each request has a connection of its own, as
with `httpx.get`; a test that wants to keep one makes a `client`, which OpenAI's official one takes as `http_client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    import httpx2

LIMIT_S = 60.0
"""httpx waits for 5 s, less than a busy machine may take to answer."""


def client(**options: Any) -> httpx.Client:
    """Return a client without certificates and proxies. OpenAI's library would take a timeout of ours for its own."""
    return httpx.Client(**{"verify": False, "trust_env": False, **options})


def anthropic_client() -> httpx2.Client:
    """Return the same for Anthropic's official client, which takes no other."""
    import anthropic

    return anthropic.DefaultHttpxClient(verify=False, trust_env=False)


_each_alone = client(limits=httpx.Limits(max_keepalive_connections=0), timeout=LIMIT_S)
get, post, options, request, stream = (
    _each_alone.get,
    _each_alone.post,
    _each_alone.options,
    _each_alone.request,
    _each_alone.stream,
)
