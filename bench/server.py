"""gunicorn's own asgi worker beside uvicorn's, serving the same bare Falcon handler (``bench/floor.py``).

    python -m bench.server [--requests 1000] [--rounds 5]

Rounds alternate. CPU time a request is the figure that a noisy machine leaves standing.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.stack import ROOT, Multipart, cpu_seconds, free_port
from deploy.local.servers import embedded_servers

WORKERS = {"gunicorn asgi": "asgi", "uvicorn-worker": "uvicorn_worker.UvicornWorker"}


def _round(port: int, form: Multipart, requests: int) -> float:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    began = time.perf_counter()
    for _ in range(requests):
        client.request("POST", "/upload", body=form.body, headers={"Content-Type": form.content_type})
        response = client.getresponse()
        response.read()
        assert response.status == 202
    client.close()
    return requests / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, embedded_servers(Path(folder) / "servers") as servers:
        running = {}
        for name, worker in WORKERS.items():
            port = free_port()
            environment = {
                **os.environ,
                "DATABASE_URL": servers.database_url,
                "REDIS_URL": servers.redis_url,
                "FLOOR_DIR": folder,
                "FLOOR_WORKER": worker,
                "PORT": str(port),
            }
            process = subprocess.Popen([sys.executable, "-m", "bench.floor"], cwd=ROOT, env=environment)
            running[name] = (port, process)
        time.sleep(3)
        form = Multipart([("page.png", bytes(10_000), "image/png")])
        speed: dict[str, list[float]] = {name: [] for name in WORKERS}
        cpu: dict[str, list[float]] = {name: [] for name in WORKERS}
        try:
            for _ in range(options.rounds):
                for name, (port, process) in running.items():
                    before = cpu_seconds(process.pid)
                    speed[name].append(_round(port, form, options.requests))
                    cpu[name].append(1e6 * (cpu_seconds(process.pid) - before) / options.requests)
        finally:
            for _, process in running.values():
                process.terminate()
                process.wait(40)
    for name in WORKERS:
        print(f"  {name:<15} {median(speed[name]):6.0f} requests/s   {median(cpu[name]):5.0f} CPU µs a request")


if __name__ == "__main__":
    main()
