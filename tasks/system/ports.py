"""Is a port free, and if not, who has it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket
import sys
from collections.abc import Mapping
from typing import Any

from state.classes import dataclass
from state.ports import BESIDE
from state.settings import TIER_PORTS
from tasks.system import tool
from tasks.system.process import Identity, identify, members

ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - bound for a moment, never listened on

STEP, LAST = 10, 65_000
"""Between the ports that are tried in place of one that is taken, and the last of them."""

SPARE = range(32_768, 49_152) if sys.platform == "darwin" else range(61_000, LAST + 1)
"""Ports that few programs have by name, and that the kernel does not choose: macOS chooses from 49152 on
(net.inet.ip.portrange.first), Linux from 32768 to 60999 (net.ipv4.ip_local_port_range)."""


@dataclass(frozen=True)
class PortHolder:
    """Who listens on a port. pid 0 and no identity: another user's program, which cannot be named."""

    pid: int
    name: str
    identity: Identity | None


def free(port: int) -> bool:
    """Return whether a server can bind the port now.

    Binds as uvicorn does, with SO_REUSEADDR, so that connections in TIME_WAIT do not count. A listener on
    all addresses counts too: macOS would let us bind beside it.
    """
    return all(_bindable(family, address, port) for family, address in ADDRESSES)


def spare() -> int:
    """Return a port that is free now, for a program that takes a while to bind it.

    The kernel gives none of SPARE to a connection meanwhile, or to a program that asks it for any port.
    """
    return spares(1)[0]


def spares(count: int) -> list[int]:
    """Return different ports such as `spare` returns."""
    return list(itertools.islice(filter(free, random.sample(SPARE, len(SPARE))), count))


def cures(name: str, kind: str, port: int) -> str:
    """Return what helps the service `name`, whose port another program has: end that program, or move the service."""
    setting = SETTINGS[kind]
    return f"End it, then: mlxq up {name}   (or: mlxq config set {setting} {_other(port, kind)})"


SETTINGS: Mapping[str, str] = {"engine": "tier-port-base", **BESIDE}
"""The setting that says where each kind of service listens."""


def _other(port: int, kind: str) -> int:
    """Return a port that is free now, for engines the first of as many as belong to them."""
    count = TIER_PORTS if kind == "engine" else 1
    bases = range(port + STEP, LAST - count, STEP)
    return next((base for base in bases if all(free(base + offset) for offset in range(count))), spare())


def _bindable(family: socket.AddressFamily, address: str, port: int) -> bool:
    """Try one address; nothing listens there on a machine without IPv6."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((address, port))
    except OSError as problem:
        return problem.errno not in {errno.EADDRINUSE, errno.EACCES}
    return True


def holder(port: int) -> PortHolder | None:
    """Return who listens on the port, or None. It is only ever named; nothing here signals it."""
    return next((_holder(pid) for pid in _listeners(port)), None)


def taken_from(port: int, owner: Identity) -> bool:
    """Return whether processes listen on the port, and none of the process group of `owner`, whose port it is.

    The group is asked first: on macOS it takes lsof some tenths of a second to look at every process.
    """
    group = members(owner)
    if any(_listens(member.pid, port) for member in group):
        return False
    pids = _listeners(port)
    return bool(pids) and not {identify(pid) for pid in pids if pid} & {*group}


def _listens(pid: int, port: int) -> bool:
    """Return whether a process of this user listens on the port."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return any(_is_listener(row, port) for row in psutil.Process(pid).net_connections("tcp"))
    return False


def _holder(pid: int) -> PortHolder:
    return PortHolder(pid, _name(pid), identify(pid) if pid else None)


def _listeners(port: int) -> list[int]:
    """Return the pids of those who listen, on whichever address; 0 for one who belongs to another user."""
    if sys.platform == "darwin":
        return _lsof(port)
    import psutil

    return [row.pid or 0 for row in psutil.net_connections("tcp") if _is_listener(row, port)]


def _is_listener(row: Any, port: int) -> bool:
    """Return whether psutil's row of a socket is that of a listener on the port."""
    return row.status == "LISTEN" and row.laddr[1:] == (port,)


def _lsof(port: int) -> list[int]:
    """Ask lsof, as psutil may list only our own processes on macOS; -b, as a network mount that hangs would hang it."""
    answer = tool.run("lsof", "-b", "-w", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fp", timeout_s=10.0)
    return parse_lsof(answer.stdout) if answer.stdout else ([] if free(port) else [0])


def parse_lsof(text: str) -> list[int]:
    """Read the pids of `lsof -Fp`, whose lines are p<pid> and f<descriptor>."""
    return [int(line[1:]) for line in text.splitlines() if line.startswith("p")]


def _name(pid: int) -> str:
    """Return the program's name as the user would type it."""
    import psutil

    with contextlib.suppress(psutil.Error, ValueError):
        if pid:
            return psutil.Process(pid).name()
    return "another user's program"
