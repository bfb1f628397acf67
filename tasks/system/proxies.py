"""Whether programs of this user would ask a proxy for what listens on this machine."""

from __future__ import annotations

HERE = ("127.0.0.1", "localhost")


def exceptions() -> str | None:
    """Return what NO_PROXY has to be, so that the gateway is asked directly; None where it is already.

    By the variables that clients honor, HTTP_PROXY and its kin, and the exceptions that are there.
    """
    from urllib import request

    proxies = request.getproxies_environment()
    if not any(proxies.get(scheme) for scheme in ("http", "all")):
        return None
    missing = [host for host in HERE if not request.proxy_bypass(host)]
    return ",".join([*filter(None, [proxies.get("no", "")]), *missing]) if missing else None
