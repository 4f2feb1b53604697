"""The worker that reads documents."""

from __future__ import annotations

import services.ocr_worker
from shared.broker import run_worker


def main() -> None:
    run_worker("ocr_worker", services.ocr_worker)
