"""The worker that delivers webhooks and mails."""

from __future__ import annotations

import services.notifier
from shared.broker import run_worker


def main() -> None:
    run_worker("notifier", services.notifier)
