"""Logs, metrics, error reports and the health port, none of which carry student data.

Import the modules: ``shared.telemetry.logging``, ``.metrics``, ``.sentry``, ``.health``. Nothing is imported
here, so that a service pays only for what it uses.
"""

from __future__ import annotations

__all__: list[str] = []
