"""docs/errors.md lists every code that a client can meet, once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from services.api.errors import _FALCON_CODES
from services.notifier.egress import FailureKind
from services.ocr_worker.engine.errors import MESSAGES
from tests.api.gateway import REPOSITORY

_CODE = re.compile(r"[a-z_]+\.[a-z_]+")


def _documented() -> tuple[list[str], list[str]]:
    answers, jobs = (REPOSITORY / "docs" / "errors.md").read_text().split("## Errors of jobs")
    rows = re.compile(r"^\| `([a-z_.]+)` \|", re.MULTILINE)
    return rows.findall(answers), rows.findall(jobs)


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (REPOSITORY / folder).rglob("*.py")


def _first_texts(names: dict[str, int], *folders: str) -> set[str]:
    """The text at that place of every call of these names."""
    found = set()
    for path in _sources(*folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                place = names[getattr(node.func, "id", "")]
                if len(node.args) > place and isinstance(given := node.args[place], ast.Constant):
                    found.add(str(given.value))
    return found


def test_every_code_of_the_api_is_listed() -> None:
    used = _first_texts({"Problem": 1, "_unauthorised": 0}, "services/api")
    used |= set(_FALCON_CODES.values()) | _first_texts({"InvalidSubmit": 0}, "shared/jobs")
    assert len(used) > 30
    listed, _ = _documented()
    assert sorted(listed) == sorted(used), "docs/errors.md and the code differ"


def test_every_code_of_jobs_is_listed() -> None:
    raised = {"PermanentError": 0, "RetryableError": 0, "JobError": 0, "DocumentError": 0}
    used = _first_texts(raised, "services", "shared") | set(MESSAGES)
    used |= {f"webhook.{kind}" for kind in get_args(FailureKind)}
    for path in _sources("shared"):
        used |= set(re.findall(r"""['"]code['"][:,] ['"]([a-z_.]+)['"]""", path.read_text()))
    _, listed = _documented()
    assert sorted(listed) == sorted(c for c in used if _CODE.fullmatch(c)), "docs/errors.md and the code differ"


def test_every_row_has_a_meaning_and_a_remedy() -> None:
    for line in (REPOSITORY / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("| `"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            assert len(cells) == 4
            assert all(cells), line
