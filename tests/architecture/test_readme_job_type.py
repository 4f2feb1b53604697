"""README, "Adding a job type": its steps, followed to the letter on a copy of the tree, make a job that runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import SecretStr

from shared.settings import Settings

ROOT = Path(__file__).parents[2]

# What a service's client would do: submit by contract, wait for the end.
_SUBMIT = """
import sys, time
from shared import ids
from shared.broker import Publisher, WakeBroker, make_redis
from shared.db import open_pool
from shared.jobs import NewJob, submit
from shared.settings import Settings

settings = Settings()
pool = open_pool(settings.database_url.get_secret_value(), size=1, application_name="readme")
publisher = Publisher(WakeBroker(make_redis(settings.redis_url.get_secret_value()))).start()
job = NewJob(id=ids.new_uuid(), org_id=ids.new_uuid(), type="grading.word_count", payload={"text": "one two three"})
with pool.connection() as conn:
    publisher.wake(submit(conn, [job]).wakes)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        row = conn.execute("select status, result, error from jobs where id = %s", (job.id,)).fetchone()
        if row["status"] in ("completed", "failed"):
            print(row["status"], row["result"] or row["error"])
            break
        time.sleep(0.05)
publisher.close()
"""


def steps() -> list[tuple[str, str, str]]:
    """(how, file, code) of each step: an HTML comment names the file, and whether the code is appended to it."""
    section = (ROOT / "README.md").read_text().split("## Adding a job type", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"<!-- (append to|new file) (\S+) -->\n```python\n(.*?)```", section, re.DOTALL)
    assert len(found) == 2, "README describes two steps"
    return found


def test_the_described_steps_suffice(tmp_path: Path, settings: Settings) -> None:
    for folder in ("shared", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for how, name, code in steps():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if how == "append to" else "") + "\n\n" + code)
    environment = {
        **os.environ,
        **{
            name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in settings
            if value is not None
        },
        "PYTHONPATH": str(tmp_path),
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "services.grading_worker"], cwd=tmp_path, env=environment, stdout=None
    )
    try:
        outcome = subprocess.check_output(
            [sys.executable, "-c", _SUBMIT], cwd=tmp_path, env=environment, text=True, timeout=60
        )
    finally:
        worker.terminate()
        worker.wait(20)
    assert outcome.strip() == "completed {'words': 3}"
    assert worker.returncode == 0
