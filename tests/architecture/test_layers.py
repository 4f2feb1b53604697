"""Imports point one way (pyproject.toml, [tool.importlinter]); services declare what they run."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

import services
from shared.broker import WorkerDeps, discover
from shared.contracts import JOB_TYPES
from shared.settings import Settings
from shared.storage import LocalStorage

ROOT = Path(__file__).parents[2]


def test_imports_point_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def handlers_by_service(tmp_path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    deps = WorkerDeps(Settings(secret_key=SecretStr("x" * 32)), LocalStorage(tmp_path))
    for info in pkgutil.iter_modules(services.__path__):
        package = importlib.import_module(f"services.{info.name}")
        found[info.name] = [h.job_type.name for h in {id(h): h for h in discover(package, deps).values()}.values()]
    for close in deps.closers:
        close()
    return found


def test_every_declared_job_type_has_one_folder_and_every_folder_a_declaration(tmp_path: Path) -> None:
    found = [name for names in handlers_by_service(tmp_path).values() for name in names]
    assert sorted(found) == sorted(t.name for t in JOB_TYPES.all())


def test_a_service_works_one_queue(tmp_path: Path) -> None:
    for service, names in handlers_by_service(tmp_path).items():
        assert len({JOB_TYPES.get(n).queue for n in names}) <= 1, service


@pytest.mark.parametrize("folder", ["shared", "services", "deploy", "tests", "bench"])
def test_no_file_is_longer_than_500_lines(folder: str) -> None:
    long = {
        str(p.relative_to(ROOT)): lines
        for p in (ROOT / folder).rglob("*.py")
        if (lines := len(p.read_text().splitlines())) > 500
    }
    assert long == {}, "split by concept"


def test_no_module_is_called_utils_helpers_or_common() -> None:
    names = {p.stem for folder in ("shared", "services", "deploy") for p in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_requirements_name_no_index() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "://" not in text, lock.name
        assert "--index" not in text
        assert "--find-links" not in text
