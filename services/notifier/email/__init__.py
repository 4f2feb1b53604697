"""notify.email: tell a person how a job or batch ended."""

from __future__ import annotations

from .handler import build

__all__ = ["build"]
