"""The worker that grades submissions."""

from __future__ import annotations

import services.grading_worker
from shared.broker import run_worker


def main() -> None:
    run_worker("grading_worker", services.grading_worker)
