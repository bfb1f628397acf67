"""What httpx offers, for servers on loopback.

A client that loads the certificates of the world's authorities costs 30 ms of CPU, and `httpx.get` makes one for each
request; a wait that asks again and again kept a processor busy with that. Each request has a connection of its own, as
with `httpx.get`; a test that wants to keep one makes a `client`.
"""

from __future__ import annotations

from typing import Any

import httpx


def client(**options: Any) -> httpx.Client:
    """Return a client without certificates and proxies."""
    return httpx.Client(**{"verify": False, "trust_env": False, **options})


_each_alone = client(limits=httpx.Limits(max_keepalive_connections=0))
get, post, options, request, stream = (
    _each_alone.get,
    _each_alone.post,
    _each_alone.options,
    _each_alone.request,
    _each_alone.stream,
)
