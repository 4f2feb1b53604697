"""``make demo``: the main job on real input, seen as a front-end developer, a webhook consumer and a teacher see it.

Starts the local stack (or uses the one that runs), uploads a sample, follows its jobs over server-sent events,
and shows the marks, the webhook with its signature checked, and the mail. Exits 0 when all of that came.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local.launch import StackFailed, free_port, healthy, launched
from deploy.local.receiver import Receiver

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_MAIL_TO = "teacher@school.example"
_SAMPLES = {"quiz": "quiz/quiz_scan.pdf", "typed": "typed/homework.pdf"}


class DemoFailed(Exception):
    """A step did not come to its end; the text says which, and where to look."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="Grade a sample from upload to mail.")
    parser.add_argument("--sample", choices=sorted(_SAMPLES), default="quiz")
    sample: str = parser.parse_args().sample
    # Wide enough for the table also where no terminal says how wide it is.
    console = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
    data = Path(os.environ.get("DATA", "var"))
    began = time.monotonic()
    try:
        with _stack(console, data) as stack, Receiver() as receiver:
            _Demo(console, stack, receiver, sample).run()
            console.print(f"\n[green]Done[/] in {time.monotonic() - began:.1f} s, the stack's start included.")
    except DemoFailed as e:
        console.print(f"\n[red]The demo failed:[/] {e}\nLogs: {data / 'logs'}")
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("Next: [bold]make run[/] keeps the stack up and prints its address and keys; README.md goes on.")
    return 0


class _Demo:
    def __init__(self, console: Console, stack: dict[str, Any], receiver: Receiver, sample: str) -> None:
        self._console = console
        self._stack = stack
        self._receiver = receiver
        self._file = _ROOT / "samples" / _SAMPLES[sample]
        self._standard = _ROOT / "samples" / sample / "standard.json"
        self._api = httpx2.Client(
            base_url=stack["base_url"],
            headers={"Authorization": f"Bearer {stack['api_key']}"},
            timeout=30,
            trust_env=False,
        )

    def run(self) -> None:
        with self._api:
            batch = self._upload()
            jobs = {job["type"]: job for job in batch["jobs"]}
            for type_ in ("ocr.document", "grading.quiz"):
                self._watch(jobs[type_])
            self._marks(jobs["grading.quiz"])
            self._webhook(jobs["grading.quiz"]["id"])
            self._mail(jobs["grading.quiz"]["id"])

    def _upload(self) -> dict[str, Any]:
        standard = self._answer(self._api.post("/api/v1/standards", json=json.loads(self._standard.read_text())))
        self._console.print(
            f"POST /api/v1/standards → {standard['id']}  “{standard['name']}”, "
            f"{standard['questions']} questions, {standard['max_points']:g} points"
        )
        began = time.perf_counter()
        with self._file.open("rb") as file:
            response = self._api.post(
                "/api/v1/uploads",
                files={"files": (self._file.name, file, "application/pdf")},
                data={
                    "standard_id": standard["id"],
                    "webhook_url": self._receiver.url,
                    "notify_email": _MAIL_TO,
                    "priority": "high",
                },
            )
        batch: dict[str, Any] = self._answer(response)
        self._console.print(
            f"POST /api/v1/uploads → {response.status_code} in {1000 * (time.perf_counter() - began):.0f} ms: "
            f"{self._file.name} ({self._file.stat().st_size // 1024} kB), batch {batch['id']}, "
            f"{batch['total']} jobs: {', '.join(j['type'] for j in batch['jobs'])}\n"
        )
        return batch

    def _watch(self, job: dict[str, Any]) -> None:
        """Follow the job's event stream to its end. Raises DemoFailed unless it completes."""
        if not sys.stdout.isatty():
            self._watch_in_lines(job)
            return
        columns = (TextColumn("{task.fields[job]:<13}"), BarColumn(40), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.description}"), console=self._console) as bar:
            task = bar.add_task("waiting", total=100, job=job["type"])
            for kind, event in self._events(job["links"]["events"]):
                progress = event.get("progress", {})
                if kind == "completed":
                    progress = {"percent": 100, "step": "completed"}
                bar.update(task, completed=progress.get("percent"), description=progress.get("step", kind))
                if _ended(job, kind, event):
                    return
        raise DemoFailed(f"the event stream of {job['type']} ended early")

    def _watch_in_lines(self, job: dict[str, Any]) -> None:
        """The same where there is no terminal to draw a moving bar on: a line a step."""
        began = time.monotonic()
        percent = 0
        for kind, event in self._events(job["links"]["events"]):
            progress = event.get("progress", {})
            percent = 100 if kind == "completed" else progress.get("percent", percent)
            bar = "█" * (percent // 5) + "·" * (20 - percent // 5)
            step = _plain(progress.get("step", kind))
            self._console.print(f"{job['type']:<13} {bar} {percent:>3} %  {time.monotonic() - began:>5.1f} s  {step}")
            if _ended(job, kind, event):
                return
        raise DemoFailed(f"the event stream of {job['type']} ended early")

    def _events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        kind = ""
        with self._api.stream("GET", path, timeout=httpx2.Timeout(10, read=300)) as stream:
            for line in stream.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data":
                    yield kind, json.loads(value)

    def _marks(self, job: dict[str, Any]) -> None:
        grading = self._answer(self._api.get(f"/api/v1/gradings/{job['refs']['grading_id']}"))
        table = Table(title=f"{grading['student_name']}: {grading['standard']['name']}", title_justify="left")
        for name, options in (
            ("Q", {}),
            ("read as", {"max_width": 26}),
            ("expected", {"max_width": 26}),
            ("points", {"justify": "right"}),
            ("confidence", {"justify": "right"}),
            ("feedback", {"max_width": 46}),
        ):
            table.add_column(name, **options)
        for mark in grading["marks"]:
            review = " [yellow]review[/]" if mark["needs_review"] else ""
            table.add_row(
                mark["question_id"],
                _plain(mark["given"] or "(blank)"),
                _plain(mark["expected"]),
                f"{mark['points']:g}/{mark['max_points']:g}",
                f"{mark['confidence']:.2f}{review}",
                _plain(mark["feedback"]),
            )
        table.add_section()
        table.add_row(
            "", "", "", f"{grading['points']:g}/{grading['max_points']:g}", "", f"{grading['percentage']:g} %"
        )
        self._console.print()
        self._console.print(table)

    def _webhook(self, job_id: str) -> None:
        delivery = self._receiver.wait_for(job_id)
        if delivery is None:
            raise DemoFailed(f"no webhook about {job_id} came within 30 s")
        if not delivery.verified(self._stack["webhook_secret"]):
            raise DemoFailed("the webhook's signature is wrong")
        event = json.loads(delivery.body)
        headers = delivery.headers
        result = event["data"].get("result") or {}
        self._console.print(
            Panel(
                f"{event['type']}  {headers['webhook-id']}\n"
                f"signature {headers['webhook-signature'][:24]}…  [green]verified[/]\n"
                f"data: id {job_id}, {result.get('points')} of {result.get('max_points')} points",
                title="Webhook",
                title_align="left",
                width=100,
            )
        )

    def _mail(self, job_id: str) -> None:
        folder = Path(self._stack["mail_dir"] or "")
        if not self._stack["mail_dir"]:
            self._console.print(f"Mail: sent to {_MAIL_TO} through the server that SMTP_URL names.")
            return
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for path in sorted(folder.glob("*.eml"), reverse=True):
                message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
                part = message.get_body(("plain",))
                text = part.get_content().strip() if part is not None else ""
                if job_id in text:
                    head = f"To: {message['To']}\nSubject: {message['Subject']}"
                    self._console.print(
                        Panel(_plain(f"{head}\n\n{text}"), title=f"Mail ({path})", title_align="left", width=100)
                    )
                    return
            time.sleep(0.05)
        raise DemoFailed("no mail came within 30 s")

    def _answer(self, response: httpx2.Response) -> Any:
        if response.is_success:
            return response.json()
        raise DemoFailed(
            f"{response.request.method} {response.request.url.path} → {response.status_code} {response.text}"
        )


def _ended(job: dict[str, Any], kind: str, event: dict[str, Any]) -> bool:
    """Has the job completed? Raises DemoFailed when it ended otherwise."""
    if kind in ("failed", "cancelled"):
        raise DemoFailed(f"{job['type']} has {kind}: {event.get('error', {}).get('message', '')}")
    return kind == "completed"


def _plain(text: str) -> str:
    """Text that is shown as it is, whatever brackets it holds."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def _stack(console: Console, data: Path) -> Iterator[dict[str, Any]]:
    """The stack on ``data``: the one that runs, or one started for as long as the block runs."""
    running = healthy(data / "stack.json")
    if running is not None:
        console.print(f"Using the stack that is up at {running['base_url']}")
        yield running
        return
    console.print("Starting Postgres, Valkey, a mail sink, the gateway, three workers and the scheduler …")
    began = time.monotonic()
    log = data / "logs" / "stack.log"
    port = os.environ.get("PORT") or str(free_port(8080))
    try:
        with launched(data, log=log, PORT=port) as stack:
            console.print(f"… up at {stack['base_url']} after {time.monotonic() - began:.1f} s; log {log}\n")
            yield stack
    except StackFailed as e:
        raise DemoFailed(str(e)) from None


if __name__ == "__main__":
    sys.exit(main())
