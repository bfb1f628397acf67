"""Imports every task module, which fills the lanes. Only the worker does this."""

from __future__ import annotations
