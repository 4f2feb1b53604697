"""A worker process of the chaos job: ``python -m tests.chaos.worker``.

CHAOS_SKEW: seconds by which its wall clock is wrong. CHAOS_ROSTER: the folder where it leaves a file named after its
worker id with its process id, so that a charge can be traced to the process that was disturbed.
"""

from __future__ import annotations

import os

from tests.chaos.clock_skew import apply_clock_skew

# Before any other import: modules keep references to time.time and datetime.
apply_clock_skew(float(os.environ.get("CHAOS_SKEW", "0")))

from pathlib import Path  # noqa: E402

from shared.broker import WorkerDeps, WorkerProcess  # noqa: E402
from shared.settings import Settings  # noqa: E402
from shared.storage import from_settings  # noqa: E402
from shared.telemetry import logging  # noqa: E402
from tests.chaos import kinds  # noqa: E402


def main() -> None:
    settings = Settings()
    logging.configure(settings, "chaos")
    process = WorkerProcess("chaos", {kinds.CHAOS.name: kinds.handler()}, WorkerDeps(settings, from_settings(settings)))
    (Path(os.environ["CHAOS_ROSTER"]) / str(process.identity.id)).write_text(str(os.getpid()))
    process.serve()


if __name__ == "__main__":
    main()
