"""Whether MLX can split a model over Macs by JACCL, its backend for RDMA over Thunderbolt. Pure: outputs in, words out.

Apple's TN3205: it needs Thunderbolt 5 and macOS 26.2, and is switched on by `rdma_ctl enable` in Recovery alone. That
switch can be set on a Mac with Thunderbolt 4 too, where no device ever comes of it (oMLX issue 3037), so the ports
are looked at first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

from mlxq.doctor import rules
from mlxq.doctor.rules import Finding, Version

AREA = "thunderbolt"
RDMA_FROM: Version = (26, 2)
THUNDERBOLT_5 = 80
"""Gb/s from which a port is Thunderbolt 5: it says 80 where a Mac is connected, and "Up to 120" where nothing is."""
_SPEED = re.compile(r"(\d+)\s*Gb/s")
_DEVICE = re.compile(r"^\s*(rdma_\w+)\s", re.MULTILINE)


def speeds(profile: str) -> list[int]:
    """Return the ports' Gb/s, of `system_profiler SPThunderboltDataType -json`; none of what is no JSON.

    A port is `receptacle_N_tag` of a bus, with `current_speed_key`.
    """
    with suppress(ValueError):
        return [
            int(match[1])
            for text in _values(json.loads(profile), "current_speed_key")
            if (match := _SPEED.search(text))
        ]
    return []


def _values(node: Any, key: str) -> Iterator[str]:
    """Yield every text that stands under a key, however deep."""
    if isinstance(node, list):
        for entry in cast("list[Any]", node):
            yield from _values(entry, key)
    elif isinstance(node, dict):
        for name, entry in cast("dict[str, Any]", node).items():
            if name == key and isinstance(entry, str):
                yield entry
            else:
                yield from _values(entry, key)


def devices(listing: str) -> list[str]:
    """Return the RDMA devices that `ibv_devices` lists below its two lines of heading."""
    return _DEVICE.findall(listing)


def jaccl(ports: Sequence[int], macos: Version, switch: str, rdma: Sequence[str], *, wanted: bool) -> Finding | None:
    """Check what JACCL needs. `switch`: what `rdma_ctl status` says; `wanted`: whether a model is split over ranks.

    Without Thunderbolt 5 there is nothing to say, unless a model is split: then ranks speak over TCP.
    """
    if max(ports, default=0) < THUNDERBOLT_5:
        return rules.passed(AREA, "no Thunderbolt 5, so no JACCL: ranks speak over TCP") if wanted else None
    if macos < RDMA_FROM:
        text = f"Thunderbolt 5, but JACCL needs macOS {rules.dotted(RDMA_FROM)}, and this is {rules.dotted(macos)}"
        return _graded(text, "softwareupdate --list", wanted=wanted)
    if "enabled" not in switch.split():
        text = "Thunderbolt 5, but RDMA is off, which JACCL needs; macOS Recovery alone can switch it on"
        return _graded(text, "rdma_ctl enable   (in Terminal of macOS Recovery)", wanted=wanted)
    if not rdma:
        text = "Thunderbolt 5 and RDMA are on, but there is no RDMA device, which JACCL needs"
        return _graded(text, "ibv_devices", wanted=wanted)
    return rules.passed(AREA, f"Thunderbolt 5, RDMA on {', '.join(rdma)}: JACCL can run")


def _graded(text: str, hint: str, *, wanted: bool) -> Finding:
    """Return what is missing: a warning where a model is split, else as it is."""
    return rules.warning(AREA, text, hint) if wanted else rules.passed(AREA, text)
