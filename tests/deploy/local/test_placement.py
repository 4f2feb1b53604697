"""As root, Postgres runs as another account, in folders which that account can reach."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import psycopg
import pytest

from deploy.local import placement
from deploy.local.placement import Account, copy_of_binaries, reachable, sibling_folder
from deploy.local.postgres import Postgres

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change the account")


@root_only
def test_data_move_out_of_a_folder_that_nobody_can_reach(tmp_path: Path) -> None:
    said: list[str] = []
    tmp_path.chmod(0o700)
    postgres = Postgres(tmp_path / "postgres", tmp_path / "log", durable=False, say=said.append)
    postgres.open()
    try:
        assert postgres.cluster.is_relative_to("/var/tmp")
        assert any(str(postgres.cluster) in line for line in said)
        postgres.start()
        with psycopg.connect(postgres.url) as connection:
            connection.execute("select 1")
        assert psutil.Process(postgres.pid).uids().effective != 0
        assert postgres.cluster.stat().st_mode & 0o077 == 0
    finally:
        postgres.close()
        postgres.discard()
    assert not postgres.cluster.exists()


@root_only
def test_a_cluster_that_has_become_unreachable_moves_with_its_rows(open_folder: Path) -> None:
    postgres = Postgres(open_folder / "postgres", open_folder / "log", durable=False, say=lambda _: None)
    postgres.open()
    postgres.start()
    try:
        assert postgres.cluster.is_relative_to(open_folder)
        with psycopg.connect(postgres.url) as connection:
            connection.execute("create table kept as select 7 as n")
    finally:
        postgres.close()
    open_folder.chmod(0o700)
    moved = Postgres(open_folder / "postgres", open_folder / "log", durable=False, say=lambda _: None)
    moved.open()
    try:
        moved.start()
        assert not moved.cluster.is_relative_to(open_folder)
        with psycopg.connect(moved.url) as connection:
            assert connection.execute("select n from kept").fetchone() == (7,)
    finally:
        moved.close()
        moved.discard()


def test_reachable_asks_for_every_folder_above(open_folder: Path) -> None:
    stranger = Account(54321, 54321)
    (open_folder / "a" / "b").mkdir(parents=True)
    for folder in ("a", "a/b"):
        (open_folder / folder).chmod(0o755)
    target = open_folder / "a" / "b" / "not there yet"
    assert reachable(target, stranger)
    (open_folder / "a").chmod(0o700)
    assert not reachable(target, stranger)
    assert reachable(target, Account(os.getuid(), os.getgid()))


def test_binaries_are_copied_once_and_runnable_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_OUTSIDE", tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    install = tmp_path / "site"
    (install / "pg" / "bin").mkdir(parents=True)
    program = install / "pg" / "bin" / "postgres"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    (install / "pg" / "bin" / "pg").symlink_to("postgres")
    (install / "other").mkdir()
    copy = copy_of_binaries(install, ("pg",))
    assert (copy / "pg" / "bin" / "postgres").stat().st_mode & 0o777 == 0o755
    assert (copy / "pg" / "bin" / "pg").is_symlink()
    assert not (copy / "other").exists()
    assert copy_of_binaries(install, ("pg",)) == copy
    program.write_text("#!/bin/sh\n# upgraded\n")
    assert copy_of_binaries(install, ("pg",)) != copy


@root_only
def test_postgres_runs_from_the_copy_when_its_wheel_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    outside = Path("/var/tmp") / f"gradeline-test-{os.getpid()}"
    outside.mkdir()
    monkeypatch.setattr(placement, "_OUTSIDE", outside)
    monkeypatch.setattr("deploy.local.postgres.reachable", lambda path, account: str(path).startswith(str(outside)))
    postgres = Postgres(tmp_path / "postgres", tmp_path / "log", durable=False, say=said.append)
    try:
        postgres.open()
        postgres.start()
        assert psutil.Process(postgres.pid).exe().startswith(str(outside))
        assert len(said) == 2
    finally:
        postgres.close()
        shutil.rmtree(outside)


def test_a_folder_that_somebody_else_put_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_OUTSIDE", tmp_path)
    folder = sibling_folder(tmp_path / "home", "token")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(RuntimeError, match="remove it"):
        sibling_folder(tmp_path / "home", "token")
