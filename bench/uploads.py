"""POST /uploads of a 1 MB file beside its floor (``bench/floor.py``) in the same run, and the idle stack's memory.

    python -m bench.uploads [--requests 200] [--rounds 3]

Targets (issue 2): p50 under 50 ms, p99 under 150 ms; idle stack under 1 GB. Measured with the workers resting
(jobs due tomorrow), which is the gateway's own time, and with both reading processes busy on the same two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from typing import Any

from bench.stack import ROOT, Multipart, free_port, get, local_stack, post, proportional_set_size, tree

_MEGABYTE = 1024 * 1024


def _jpeg(size: int) -> bytes:
    """A real photo, padded by a comment segment's worth of zero bytes after its end to exactly ``size``."""
    photo = (ROOT / "samples" / "photos" / "page1_exif_rotated.jpg").read_bytes()
    return photo + bytes(size - len(photo))


def _measure(address: str, path: str, form: Multipart, key: str, requests: int) -> list[float]:
    client = http.client.HTTPConnection(address, timeout=60)
    headers = {"Content-Type": form.content_type, "Authorization": f"Bearer {key}"}
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        client.request("POST", path, body=form.body, headers=headers)
        response = client.getresponse()
        answer = response.read()
        times.append(1000 * (time.perf_counter() - began))
        if response.status != 202:
            raise SystemExit(f"{path} answered {response.status}: {answer[:300]!r}")
    client.close()
    return times


@contextlib.contextmanager
def _floor(stack: dict[str, Any]) -> Iterator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        environment = {
            **os.environ,
            "DATABASE_URL": stack["database_url"],
            "REDIS_URL": stack["redis_url"],
            "FLOOR_DIR": folder,
            "PORT": str(port),
        }
        process = subprocess.Popen([sys.executable, "-m", "bench.floor"], cwd=ROOT, env=environment)
        try:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    http.client.HTTPConnection("127.0.0.1", port).connect()
                    break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _row(title: str, times: list[float]) -> tuple[float, float]:
    p99 = quantiles(times, n=100)[98]
    print(f"  {title:<42} p50 {median(times):7.1f} ms   p99 {p99:7.1f} ms   max {max(times):7.1f} ms", flush=True)
    return median(times), p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with local_stack(API_WORKERS="2") as stack:
        time.sleep(5)
        _memory(stack, "before the first job")
        address = stack["base_url"].removeprefix("http://")
        photo = ("page.jpg", _jpeg(_MEGABYTE), "image/jpeg")
        resting = Multipart([photo], run_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        busy = Multipart([photo])
        key = stack["api_key"]
        ours: list[float] = []
        floor: list[float] = []
        print(f"POST /uploads, 1 MB, one client, {options.rounds} alternating rounds of {options.requests}:")
        with _floor(stack) as floor_address:
            _measure(address, "/api/v1/uploads", resting, key, 10)
            _measure(floor_address, "/upload", resting, key, 10)
            for _ in range(options.rounds):
                floor += _measure(floor_address, "/upload", resting, key, options.requests)
                ours += _measure(address, "/api/v1/uploads", resting, key, options.requests)
        floor_p50, _ = _row("floor: form, hash, fsync, INSERT, push", floor)
        p50, p99 = _row("gateway, workers resting", ours)
        for _ in range(8):  # give the two reading processes work for as long as the next round takes
            post(stack, "/api/v1/uploads", busy.body, busy.content_type)
        loaded = _measure(address, "/api/v1/uploads", resting, key, options.requests)
        busy_p50, busy_p99 = _row("gateway, both cores reading", loaded)
        print(f"  gateway / floor at p50: {p50 / floor_p50:.2f}")
        print(f"  target p50 < 50 ms: {_verdict(p50 < 50)}   p99 < 150 ms: {_verdict(p99 < 150)}")
        print(f"  the same with both cores reading: {_verdict(busy_p50 < 50)}, {_verdict(busy_p99 < 150)}")
        while get(stack, "/api/v1/jobs?status=processing")[1]["items"]:
            time.sleep(0.5)
        time.sleep(25)  # reading processes without work are released after 20 s
        _memory(stack, "after reading")


def _memory(stack: dict[str, Any], when: str) -> None:
    print(f"Idle stack {when}, proportional set size:")
    total = 0
    named = {service["pid"]: name for name, service in stack["services"].items()}
    rest = set(tree(stack["pid"]))
    for pid, name in named.items():
        pids = tree(pid)
        rest -= set(pids)
        size = sum(map(proportional_set_size, pids))
        total += size
        print(f"  {name:<16} {size / 1e6:7.1f} MB  ({len(pids)} processes)")
    size = sum(map(proportional_set_size, rest))
    total += size
    print(f"  {'servers and rest':<16} {size / 1e6:7.1f} MB  ({len(rest)} processes)")
    print(f"  {'in all':<16} {total / 1e6:7.1f} MB  target < 1000 MB: {_verdict(total < 1e9)}")


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


if __name__ == "__main__":
    main()
