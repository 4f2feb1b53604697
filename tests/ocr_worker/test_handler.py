"""``ocr.document`` from end to end, with a real pool and storage, and a stand-in for the job's context."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.ocr_worker.document import DocumentReader, build
from services.ocr_worker.engine import ReaderPool
from shared.contracts import OCR_DOCUMENT, OcrPayload
from shared.jobs import JobCancelled, JobInfo, PermanentError, RetryableError
from shared.settings import Settings
from shared.storage import LocalStorage

from . import drawing

pytestmark = pytest.mark.slow


class Rows:
    """Answers the handler's two look-ups."""

    def __init__(self, document: tuple[str, str] | None, student: str | None) -> None:
        self._document = document
        self._student = student
        self._row: tuple[Any, ...] | None = None

    @contextmanager
    def cursor(self, **_: object) -> Iterator[Rows]:
        yield self

    def execute(self, query: str, _: object) -> Rows:
        self._row = self._document if "FROM documents" in query else (self._student,)
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._row


class Context:
    def __init__(self, document: tuple[str, str] | None, student: str | None = None) -> None:
        self.job = JobInfo(uuid4(), uuid4(), "ocr.document", 2, 0, None, datetime.now(UTC), None)
        self.steps: list[tuple[int, str]] = []
        self.cancelled = False
        self.interruptible = threading.Event()
        self._rows = Rows(document, student)
        self._stop: Callable[[], None] | None = None

    def progress(self, percent: int, step: str) -> None:
        self.check()
        self.steps.append((percent, step))

    def log(self, message: str, **fields: Any) -> None: ...

    @contextmanager
    def connection(self) -> Iterator[Any]:
        yield self._rows

    @contextmanager
    def on_interrupt(self, stop: Callable[[], None]) -> Iterator[None]:
        self._stop = stop
        self.interruptible.set()
        yield
        self._stop = None

    def check(self) -> None:
        if self.cancelled:
            raise JobCancelled

    def cancel(self) -> None:
        self.cancelled = True
        assert self._stop is not None
        self._stop()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def reader(pool: ReaderPool, storage: LocalStorage) -> DocumentReader:
    return DocumentReader(Settings(), storage, pool)


def stored_images(tmp_path: Path) -> list[str]:
    return [str(p) for p in (tmp_path / "storage").rglob("*.jpg")]


def put(storage: LocalStorage, path: Path, media_type: str) -> tuple[str, str]:
    storage.put_file("org/original", path, media_type)
    return "org/original", media_type


def test_a_scan_becomes_a_result_page_images_and_one_effect(
    reader: DocumentReader, storage: LocalStorage, tmp_path: Path
) -> None:
    images = [drawing.page(), drawing.page(("The second page",)), drawing.page(("The third page",))]
    ctx = Context(put(storage, drawing.scanned_pdf(tmp_path / "a.pdf", images), "application/pdf"))
    payload = OcrPayload(document_id=uuid4(), submission_id=uuid4())

    done = reader.run(ctx, payload)

    assert [page.number for page in done.result.pages] == [1, 2, 3]
    assert done.result.student_name == "Ada Lovelace"
    assert done.result.school == "Analytical Academy"
    assert not done.result.needs_review
    assert done.result.document_id.startswith("doc_")
    assert len(done.effects) == 1
    for number in (1, 2, 3):
        assert storage.exists(f"pages/{payload.document_id}/2/{number}.jpg")
    steps = [step for _, step in ctx.steps]
    assert steps[0] == "Starting document processing"
    assert steps[1] == "Processing image 1 of 3"
    assert steps[-1] == "Processing complete, cleaning up files"
    percents = [percent for percent, _ in ctx.steps]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (5, 95)


def test_a_submission_without_a_name_is_for_a_person_to_look_at(
    reader: DocumentReader, storage: LocalStorage, tmp_path: Path
) -> None:
    document = put(storage, drawing.text_pdf(tmp_path / "a.pdf", text="Nobody wrote a label here"), "application/pdf")
    payload = OcrPayload(document_id=uuid4(), submission_id=uuid4())
    assert reader.run(Context(document), payload).result.needs_review
    named = reader.run(Context(document, student="Grace Hopper"), payload).result
    assert (named.student_name, named.needs_review) == ("Grace Hopper", False)


def test_a_bad_file_fails_for_good_with_its_code(reader: DocumentReader, storage: LocalStorage, tmp_path: Path) -> None:
    ctx = Context(put(storage, drawing.encrypted_pdf(tmp_path / "a.pdf"), "application/pdf"))
    with pytest.raises(PermanentError) as caught:
        reader.run(ctx, OcrPayload(document_id=uuid4()))
    assert caught.value.code == "document.encrypted"
    assert stored_images(tmp_path) == []


def test_a_document_that_is_gone_fails_for_good(reader: DocumentReader) -> None:
    with pytest.raises(PermanentError, match=r"document\.gone"):
        reader.run(Context(None), OcrPayload(document_id=uuid4()))


def test_a_cancel_takes_effect_within_a_second_and_leaves_nothing(
    reader: DocumentReader, storage: LocalStorage, tmp_path: Path
) -> None:
    lines = tuple(f"{n} all work and no play makes jack a dull boy indeed" for n in range(28))
    dense = drawing.page(lines, size=(1400, 2300))
    ctx = Context(put(storage, drawing.scanned_pdf(tmp_path / "a.pdf", [dense] * 4), "application/pdf"))
    raised: list[BaseException] = []

    def run() -> None:
        try:
            reader.run(ctx, OcrPayload(document_id=uuid4()))
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


def test_a_pool_closed_under_a_job_lets_it_be_tried_again(storage: LocalStorage, tmp_path: Path) -> None:
    pool = ReaderPool(1)
    reader = DocumentReader(Settings(), storage, pool)
    ctx = Context(put(storage, drawing.scanned_pdf(tmp_path / "a.pdf", [drawing.page()] * 9), "application/pdf"))
    closer = threading.Thread(target=lambda: ctx.interruptible.wait(10) and pool.close())
    closer.start()
    with pytest.raises(RetryableError):
        reader.run(ctx, OcrPayload(document_id=uuid4()))
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


def test_ids_in_keys_are_the_documents(reader: DocumentReader, storage: LocalStorage, tmp_path: Path) -> None:
    document_id = UUID(int=7)
    ctx = Context(put(storage, drawing.save(drawing.page(), tmp_path / "a.png"), "image/png"))
    reader.run(ctx, OcrPayload(document_id=document_id))
    assert storage.exists(f"pages/{document_id}/2/1.jpg")
