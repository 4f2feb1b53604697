"""``ocr.document`` from end to end: real reading processes, storage and rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.ocr_worker.document import DocumentReader, build
from services.ocr_worker.engine import ReaderPool
from shared.contracts import OCR_DOCUMENT, OcrPayload, OcrResult
from shared.db import SyncPool
from shared.jobs import Done, JobCancelled, PermanentError, RetryableError
from shared.settings import Settings
from shared.storage import LocalStorage
from tests.grading_worker.rows import Rows
from tests.grading_worker.running import RunningJob
from tests.grading_worker.sheets import key_of

from . import drawing

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(pool: SyncPool, org_id: UUID) -> Rows:
    return Rows(pool, org_id)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def reader(reader_pool: ReaderPool, storage: LocalStorage) -> DocumentReader:
    return DocumentReader(Settings(), storage, reader_pool)


class Intake:
    """A file stored and accepted as the gateway does it: a document, and a submission of it."""

    def __init__(self, rows: Rows, storage: LocalStorage, path: Path, *, student_name: str | None = None) -> None:
        self.rows = rows
        self.storage = storage
        key = f"documents/{rows.org_id}/{uuid4()}"
        media_type = {".pdf": "application/pdf", ".png": "image/png"}[path.suffix]
        storage.put_file(key, path, media_type)
        self.document_id: UUID = rows.document(key, media_type)
        self.submission_id: UUID = rows.submission(self.document_id, student_name)

    def becomes(self, path: Path) -> None:
        """Another file lies behind the document. What was stored under a key never changes."""
        key = f"documents/{self.rows.org_id}/{uuid4()}"
        self.storage.put_file(key, path, "application/pdf")
        self.rows.execute("update documents set storage_key = %s where id = %s", key, self.document_id)

    @property
    def payload(self) -> OcrPayload:
        return OcrPayload(document_id=self.document_id, submission_id=self.submission_id)

    @property
    def document(self) -> dict[str, Any]:
        return self.rows.one("documents", self.document_id)

    @property
    def submission(self) -> dict[str, Any]:
        return self.rows.one("submissions", self.submission_id)

    @property
    def pages(self) -> list[dict[str, Any]]:
        return self.rows.pages(self.document_id)

    def text(self) -> list[str]:
        return [" ".join(line["text"] for line in page["lines"]) for page in self.pages]


def job(rows: Rows, attempt: int = 1) -> RunningJob:
    return RunningJob(rows.pool, rows.org_id, OCR_DOCUMENT.name, attempt)


def read(reader: DocumentReader, intake: Intake) -> OcrResult:
    """Read and committed."""
    ctx = job(intake.rows)
    done = reader.run(ctx, intake.payload)
    ctx.finish(done)
    return done.result


def stored_images(tmp_path: Path) -> list[str]:
    return [str(p) for p in (tmp_path / "storage").rglob("*.jpg")]


def test_a_scan_becomes_pages_with_images_and_a_submission_with_its_fields(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    images = [drawing.page(), drawing.page(("The second page",)), drawing.page(("The third page",))]
    intake = Intake(rows, storage, drawing.scanned_pdf(tmp_path / "a.pdf", images))
    ctx = job(rows)

    done = reader.run(ctx, intake.payload)
    assert intake.pages == [], "nothing is written before the job ends"
    ctx.finish(done)

    result = done.result
    assert [page.number for page in result.pages] == [1, 2, 3]
    assert (result.student_name, result.school, result.needs_review) == ("Ada Lovelace", "Analytical Academy", False)
    assert (intake.document["page_count"], intake.document["read_at"] is not None) == (3, True)
    submission = intake.submission
    assert (submission["status"], submission["needs_review"]) == ("read", False)
    assert (submission["student_name"], submission["school"]) == ("Ada Lovelace", "Analytical Academy")
    assert submission["fields"]["student_name"]["value"] == "Ada Lovelace"
    assert [p["number"] for p in intake.pages] == [1, 2, 3]
    assert "second" in intake.text()[1]
    assert all(storage.exists(p["image_key"]) for p in intake.pages)
    assert all(str(intake.document_id) in p["image_key"] for p in intake.pages)
    steps = [step for _, step in ctx.steps]
    assert steps[0] == "Starting document processing"
    assert steps[1] == "Processing image 1 of 3"
    assert steps[-1] == "Processing complete, cleaning up files"
    percents = [percent for percent, _ in ctx.steps]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (5, 95)


def test_a_crash_before_the_commit_leaves_nothing_and_the_next_attempt_does_not_double(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf", pages=2))
    first = job(rows)
    first.finish(reader.run(first, intake.payload), crash=True)
    assert (intake.pages, intake.submission["status"], intake.document["read_at"]) == ([], "reading", None)

    second = job(rows, attempt=2)
    second.finish(reader.run(second, intake.payload))
    assert [p["number"] for p in intake.pages] == [1, 2]
    assert intake.submission["status"] == "read"


def test_reading_again_replaces_the_pages_whatever_their_number(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf", pages=3))
    read(reader, intake)
    intake.becomes(drawing.text_pdf(tmp_path / "b.pdf", text="Name: Grace Hopper found a moth in the relay"))
    read(reader, intake)
    assert (len(intake.pages), intake.document["page_count"]) == (1, 1)
    assert "moth" in intake.text()[0]
    assert intake.submission["status"] == "read"


def test_a_second_reading_that_fails_leaves_the_first_with_its_images(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf", pages=2))
    read(reader, intake)
    ctx = job(rows)

    def fail_late(percent: int, step: str) -> None:
        if percent > 50:
            raise RuntimeError("after an image was stored")

    ctx.progress = fail_late  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        reader.run(ctx, intake.payload)
    assert len(intake.pages) == len(stored_images(tmp_path)) == 2
    assert all(storage.exists(p["image_key"]) for p in intake.pages)


def test_a_document_of_another_organisation_is_not_found(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    theirs = Intake(rows.another_organisation(), storage, drawing.text_pdf(tmp_path / "a.pdf"))
    with pytest.raises(PermanentError, match=r"document\.gone"):
        reader.run(job(rows), theirs.payload)
    assert theirs.pages == []


def test_a_submission_of_another_organisation_is_neither_read_nor_written(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    ours = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf"))
    theirs = Intake(rows.another_organisation(), storage, tmp_path / "a.pdf", student_name="Their Pupil")
    before = theirs.submission
    ours.submission_id = theirs.submission_id
    assert (read(reader, ours).student_name or "").startswith("Grace Hopper")
    assert theirs.submission == before
    assert len(ours.pages) == 1


def test_a_document_that_is_gone_fails_for_good(reader: DocumentReader, rows: Rows) -> None:
    with pytest.raises(PermanentError, match=r"document\.gone"):
        reader.run(job(rows), OcrPayload(document_id=uuid4()))


def test_a_document_deleted_while_it_is_read_fails_for_good(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf"))
    ctx = job(rows)
    done = reader.run(ctx, intake.payload)
    rows.execute("delete from documents")
    with pytest.raises(PermanentError, match=r"document\.gone"):
        ctx.finish(done)
    assert intake.pages == []


def test_a_name_that_a_person_gave_stays(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    path = drawing.text_pdf(tmp_path / "a.pdf")
    given = Intake(rows, storage, path, student_name="G. Hopper")
    assert read(reader, given).student_name == "G. Hopper"
    assert given.submission["student_name"] == "G. Hopper"
    entered = Intake(rows, storage, path)
    ctx = job(rows)
    done: Done[OcrResult] = reader.run(ctx, entered.payload)
    rows.execute("update submissions set student_name = 'Rear Admiral' where id = %s", entered.submission_id)
    ctx.finish(done)
    assert entered.submission["student_name"] == "Rear Admiral"


def test_a_submission_without_a_name_is_for_a_person_to_look_at(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    path = drawing.text_pdf(tmp_path / "a.pdf", text="Nobody wrote a label here")
    unnamed = Intake(rows, storage, path)
    assert read(reader, unnamed).needs_review
    assert unnamed.submission["needs_review"]
    named = Intake(rows, storage, path, student_name="Grace Hopper")
    result = read(reader, named)
    assert (result.student_name, result.needs_review) == ("Grace Hopper", False)
    assert not named.submission["needs_review"]


def test_reading_again_replaces_its_own_doubt_and_keeps_that_of_the_marks(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf", text="Nobody wrote a label here"))
    read(reader, intake)
    assert intake.submission["needs_review"]
    intake.becomes(drawing.text_pdf(tmp_path / "b.pdf", text="Name: Grace Brewster Hopper"))
    read(reader, intake)
    assert not intake.submission["needs_review"]

    standard_id = rows.standard(key_of({"kind": "true_false", "answer": True}))
    rows.execute(
        "update gradings set status = 'graded', needs_review = true where id = %s",
        rows.grading(standard_id, intake.submission_id),
    )
    read(reader, intake)
    assert intake.submission["needs_review"]


def test_a_blank_page_is_a_page_without_lines_for_a_person_to_look_at(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.save(drawing.page(()), tmp_path / "a.png"), student_name="Ada")
    result = read(reader, intake)
    assert (result.confidence, result.needs_review) == (0, True)
    (page,) = intake.pages
    assert (page["source"], page["confidence"], page["lines"]) == ("blank", 0, [])
    assert storage.exists(page["image_key"])
    assert (intake.submission["status"], intake.submission["needs_review"]) == ("read", True)


def test_a_document_without_a_submission_is_read_alone(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.text_pdf(tmp_path / "a.pdf", text="Nobody wrote a label here"))
    ctx = job(rows)
    done = reader.run(ctx, OcrPayload(document_id=intake.document_id))
    ctx.finish(done)
    assert (done.result.submission_id, done.result.needs_review) == (None, False)
    assert (len(intake.pages), intake.submission["status"]) == (1, "reading")


def test_a_bad_file_fails_for_good_with_its_code(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    intake = Intake(rows, storage, drawing.encrypted_pdf(tmp_path / "a.pdf"))
    with pytest.raises(PermanentError) as caught:
        reader.run(job(rows), intake.payload)
    assert caught.value.code == "document.encrypted"
    assert stored_images(tmp_path) == []


def test_a_cancel_takes_effect_within_a_second_and_leaves_nothing(
    reader: DocumentReader, rows: Rows, storage: LocalStorage, tmp_path: Path
) -> None:
    lines = tuple(f"{n} all work and no play makes jack a dull boy indeed" for n in range(28))
    dense = drawing.page(lines, size=(1400, 2300))
    intake = Intake(rows, storage, drawing.scanned_pdf(tmp_path / "a.pdf", [dense] * 4))
    ctx = job(rows)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            reader.run(ctx, intake.payload)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert ctx.interruptible.wait(10)
    thread.join(0.7)  # reading by now
    assert thread.is_alive()
    ctx.cancel()
    thread.join(1.0)
    assert not thread.is_alive()
    assert isinstance(raised[0], JobCancelled)
    assert stored_images(tmp_path) == []


def test_a_pool_closed_under_a_job_lets_it_be_tried_again(rows: Rows, storage: LocalStorage, tmp_path: Path) -> None:
    reader_pool = ReaderPool(1)
    reader = DocumentReader(Settings(), storage, reader_pool)
    intake = Intake(rows, storage, drawing.scanned_pdf(tmp_path / "a.pdf", [drawing.page()] * 9))
    ctx = job(rows)
    closer = threading.Thread(target=lambda: ctx.interruptible.wait(10) and reader_pool.close())
    closer.start()
    with pytest.raises(RetryableError):
        reader.run(ctx, intake.payload)
    closer.join()


def test_build_binds_the_job_type_and_closes_with_the_worker(storage: LocalStorage) -> None:
    class Deps:
        def __init__(self) -> None:
            self.settings = Settings()
            self.storage = storage
            self.closers: list[Callable[[], None]] = []

        def on_close(self, close: Callable[[], None], /) -> None:
            self.closers.append(close)

    deps = Deps()
    handler = build(deps)
    assert handler.job_type is OCR_DOCUMENT
    assert len(deps.closers) == 1
    deps.closers[0]()
