"""notify.webhook: deliver one event to one URL, signed, at least once."""

from __future__ import annotations

from .handler import build

__all__ = ["build"]
