"""Retention as the scheduler runs it: files and jobs go in time, and what somebody needs stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from services.scheduler import files
from services.scheduler.files import FilePruner
from services.scheduler.pruner import Pruner
from shared.db import SyncPool
from shared.ids import new_uuid
from shared.jobs import NewJob, Outcome, store, submit
from shared.settings import Settings
from shared.storage import LocalStorage, StorageUnavailable

Document = Callable[..., UUID]


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.storage_dir)


@pytest.fixture
def pruner(pool: SyncPool, storage: LocalStorage, settings: Settings) -> Pruner:
    return Pruner(pool, storage, settings)


@pytest.fixture
def document(pool: SyncPool, storage: LocalStorage, org_id: UUID) -> Document:
    """A document that was read so many hours ago, with its upload and one page image."""

    def add(hours: float = 30, *, owner: UUID = org_id) -> UUID:
        id = UUID(int=new_uuid().int - (int(hours * 3_600_000) << 80))
        upload, image = f"documents/{owner}/{id}.pdf", f"pages/{id}/{uuid4()}/1/1.jpg"
        storage.put_bytes(upload, b"pdf", "application/pdf")
        storage.put_bytes(image, b"jpg", "image/jpeg")
        with pool.connection() as conn:
            conn.execute(
                """insert into documents (id, org_id, name, media_type, size, sha256, storage_key, created_at, read_at)
                   values (%s, %s, 'n', 'application/pdf', 3, '', %s, now() - make_interval(secs => %s), now())""",
                (id, owner, upload, hours * 3600),
            )
            conn.execute(
                """insert into document_pages (document_id, number, org_id, width, height, source, confidence,
                                               image_key, lines) values (%s, 1, %s, 1, 1, 'ocr', 1, %s, %s)""",
                (id, owner, image, Jsonb([{"text": "kept"}])),
            )
        return id

    return add


def submission(
    pool: SyncPool, document_id: UUID, org_id: UUID, *, review: bool = False, job_id: UUID | None = None
) -> UUID:
    id = new_uuid()
    with pool.connection() as conn:
        conn.execute(
            """insert into submissions (id, org_id, document_id, job_id, status, needs_review)
               values (%s, %s, %s, %s, 'read', %s)""",
            (id, org_id, document_id, job_id or uuid4(), review),
        )
    return id


def accept(pool: SyncPool, org_id: UUID, **payload: Any) -> UUID:
    job = NewJob(id=new_uuid(), type="ocr.document", payload={"document_id": str(uuid4()), **payload}, org_id=org_id)
    with pool.connection() as conn, conn.transaction():
        submit(conn, [job])
    return job.id


def finish(pool: SyncPool) -> None:
    worker = uuid4()
    with pool.connection() as conn, conn.transaction():
        claimed = store.claim(conn, queue="ocr", worker_id=worker, lease_seconds=30, limit=10)
        store.settle(conn, worker, [Outcome.completed(c, {}) for c in claimed])


def keys(storage: LocalStorage, id: UUID) -> list[str]:
    return [o.key for folder in ("documents", "pages") for o in storage.walk(folder) if str(id) in o.key]


def files_deleted(pool: SyncPool, id: UUID) -> bool:
    with pool.connection() as conn:
        row = conn.execute("select files_deleted_at from documents where id = %s", (id,)).fetchone()
    assert row is not None
    return row["files_deleted_at"] is not None


def backdate(settings: Settings, key: str, age: timedelta) -> None:
    then = (datetime.now(UTC) - age).timestamp()
    os.utime(Path(settings.storage_dir) / key, (then, then))


class TestFiles:
    def test_files_past_their_time_go_and_the_reading_stays(
        self, pool: SyncPool, storage: LocalStorage, pruner: Pruner, document: Document
    ) -> None:
        old, young = document(25), document(23)
        assert pruner.prune()["documents"] == 1
        assert keys(storage, old) == []
        assert len(keys(storage, young)) == 2
        assert (files_deleted(pool, old), files_deleted(pool, young)) == (True, False)
        with pool.connection() as conn:
            page = conn.execute("select image_key, lines from document_pages where document_id = %s", (old,)).fetchone()
        assert page == {"image_key": None, "lines": [{"text": "kept"}]}
        assert pruner.prune()["documents"] == 0

    def test_images_of_replaced_readings_and_killed_attempts_go_with_them(
        self, storage: LocalStorage, pruner: Pruner, document: Document
    ) -> None:
        old = document()
        storage.put_bytes(f"pages/{old}/{uuid4()}/2/7.jpg", b"x", "image/jpeg")
        pruner.prune()
        assert keys(storage, old) == []

    @pytest.mark.parametrize("names", ["document", "submission", "reading"])
    def test_a_document_that_a_living_job_names_keeps_its_files(
        self, pool: SyncPool, pruner: Pruner, document: Document, org_id: UUID, names: str
    ) -> None:
        old = document()
        if names == "document":
            accept(pool, org_id, document_id=str(old))
        elif names == "submission":
            accept(pool, org_id, submission_id=str(submission(pool, old, org_id)))
        else:
            submission(pool, old, org_id, job_id=accept(pool, org_id))
        assert pruner.prune()["documents"] == 0
        finish(pool)
        assert pruner.prune()["documents"] == 1

    def test_another_organisations_job_keeps_nothing(self, pool: SyncPool, pruner: Pruner, document: Document) -> None:
        accept(pool, uuid4(), document_id=str(document()))
        assert pruner.prune()["documents"] == 1

    @pytest.mark.parametrize("flagged", ["submission", "grading"])
    def test_what_a_teacher_has_yet_to_look_at_stays_a_month(
        self, pool: SyncPool, pruner: Pruner, document: Document, org_id: UUID, flagged: str
    ) -> None:
        new, old = document(29 * 24), document(31 * 24)
        for id in (new, old):
            sub = submission(pool, id, org_id, review=flagged == "submission")
            if flagged == "grading":
                self.grading(pool, sub, org_id)
        assert pruner.prune()["documents"] == 1
        assert (files_deleted(pool, new), files_deleted(pool, old)) == (False, True)

    def grading(self, pool: SyncPool, submission_id: UUID, org_id: UUID) -> None:
        standard = uuid4()
        with pool.connection() as conn:
            conn.execute("insert into standards (id, org_id, name) values (%s, %s, 's')", (standard, org_id))
            conn.execute(
                """insert into standard_versions (standard_id, version, org_id, key, max_points)
                   values (%s, 1, %s, '{}', 1)""",
                (standard, org_id),
            )
            conn.execute(
                """insert into gradings (id, org_id, submission_id, standard_id, standard_version, job_id, needs_review)
                   values (%s, %s, %s, %s, 1, %s, true)""",
                (new_uuid(), org_id, submission_id, standard, uuid4()),
            )

    def test_an_organisation_has_its_own_time(
        self, pool: SyncPool, pruner: Pruner, document: Document, org_id: UUID
    ) -> None:
        with pool.connection() as conn:
            conn.execute("update organisations set file_retention_hours = 100")
        old = document(99)
        assert pruner.prune()["documents"] == 0
        with pool.connection() as conn:
            conn.execute("update organisations set file_retention_hours = 1")
        assert pruner.prune()["documents"] == 1
        assert files_deleted(pool, old)

    def test_a_crash_between_storage_and_row_is_made_good_by_the_next_round(
        self, pool: SyncPool, storage: LocalStorage, document: Document, settings: Settings
    ) -> None:
        old = document()

        class Dying(LocalStorage):
            def delete(self, keys: Iterable[str]) -> None:
                super().delete(keys)
                raise StorageUnavailable("died just after it")

        with pytest.raises(StorageUnavailable):
            Pruner(pool, Dying(settings.storage_dir), settings).prune()
        assert (keys(storage, old), files_deleted(pool, old)) == ([], False)
        assert Pruner(pool, storage, settings).prune()["documents"] == 1
        assert files_deleted(pool, old)

    def test_a_document_read_anew_meanwhile_is_looked_at_again(
        self, pool: SyncPool, storage: LocalStorage, document: Document, settings: Settings
    ) -> None:
        old = document()
        image = f"pages/{old}/{uuid4()}/1/1.jpg"

        class Overtaken(LocalStorage):
            def delete(self, keys: Iterable[str]) -> None:
                super().delete(keys)
                with pool.connection() as conn:
                    conn.execute("update documents set read_at = now() + interval '1 second' where id = %s", (old,))
                self.put_bytes(image, b"x", "image/jpeg")

        assert Pruner(pool, Overtaken(settings.storage_dir), settings).prune()["documents"] == 0
        assert keys(storage, old) == [image]
        assert Pruner(pool, storage, settings).prune()["documents"] == 1
        assert keys(storage, old) == []

    def test_replicas_at_once_share_the_work_and_break_nothing(
        self, pool: SyncPool, storage: LocalStorage, document: Document, settings: Settings
    ) -> None:
        ids = [document() for _ in range(60)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: Pruner(pool, storage, settings).prune(), range(4)))
        assert all(files_deleted(pool, id) for id in ids)
        assert list(storage.walk("documents")) == []


class TestStrays:
    def test_objects_that_no_row_names_go_after_a_day(
        self, storage: LocalStorage, pruner: Pruner, document: Document, settings: Settings, org_id: UUID
    ) -> None:
        kept = document(1)
        old, new = f"pages/{kept}/{uuid4()}/2/1.jpg", f"pages/{kept}/{uuid4()}/3/1.jpg"
        upload = f"documents/{org_id}/{new_uuid()}.pdf"
        foreign = "pages/somebody-elses/file.jpg"
        for key in (old, new, upload, foreign):
            storage.put_bytes(key, b"x", "image/jpeg")
        for found in [*storage.walk("pages"), *storage.walk("documents")]:
            if found.key != new:
                backdate(settings, found.key, timedelta(hours=25))
        assert pruner.prune()["strays"] == 2
        assert not storage.exists(old)
        assert not storage.exists(upload)
        assert storage.exists(new), "its attempt may not have ended"
        assert storage.exists(foreign), "not a key of ours"
        assert len(keys(storage, kept)) == 3

    def test_a_sweep_goes_on_where_its_time_ran_out(
        self, pool: SyncPool, storage: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.scheduler.files._KEYS", 1)
        for _ in range(3):
            key = f"pages/{new_uuid()}/{uuid4()}/1/1.jpg"
            storage.put_bytes(key, b"x", "image/jpeg")
            backdate(settings, key, timedelta(days=2))
        ticks = count()
        monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
        pruner = FilePruner(storage, settings)
        with pool.connection() as conn:
            # Each look at the clock is a second: one for documents, the others for a chunk of one object each.
            rounds = [pruner.prune(conn, float(next(ticks)) + 3).strays for _ in range(3)]
        assert sum(rounds) == 3
        assert max(rounds) < 3


class TestRounds:
    def test_a_round_prunes_everything_and_logs_counts_alone(
        self, pool: SyncPool, pruner: Pruner, document: Document, org_id: UUID
    ) -> None:
        document()
        id = UUID(int=new_uuid().int - (30 * 3_600_000 << 80))
        secret = {"document_id": str(uuid4())}
        with pool.connection() as conn, conn.transaction():
            submit(conn, [NewJob(id=id, type="ocr.document", payload=secret, org_id=org_id)])
        finish(pool)
        with pool.connection() as conn:
            conn.execute("update jobs set finished_at = now() - interval '30 hours'")
        with capture_logs() as logs:
            counts = pruner.prune()
        assert (counts["jobs"], counts["documents"]) == (1, 1)
        [line] = [entry for entry in logs if entry["event"] == "prune.done"]
        assert {name for name in line if name not in ("event", "log_level", "seconds")} == {"jobs", "documents"}
        with capture_logs() as logs:
            pruner.prune()
        assert logs == [], "nothing done, nothing said"

    def test_nothing_of_it_holds_a_transaction_while_storage_works(
        self, pool: SyncPool, document: Document, settings: Settings
    ) -> None:
        document()
        seen: list[int] = []

        class Watching(LocalStorage):
            def delete(self, keys: Iterable[str]) -> None:
                with pool.connection() as conn:
                    row = conn.execute(
                        """select count(*)::int as n from pg_stat_activity where datname = current_database()
                            and pid <> pg_backend_pid() and xact_start is not null"""
                    ).fetchone()
                assert row is not None
                seen.append(row["n"])
                super().delete(keys)

        Pruner(pool, Watching(settings.storage_dir), settings).prune()
        assert seen[0] == 0
