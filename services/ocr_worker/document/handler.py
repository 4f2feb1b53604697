"""Runs one reading: fetch the file, read its pages in child processes, keep the page images, write what was read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Final, NoReturn, Protocol, TypeAlias
from uuid import UUID

from psycopg.rows import tuple_row

from services.ocr_worker.engine import DocumentError, DocumentInfo, Pending, ReaderPool
from services.ocr_worker.fields import FieldName, find_fields
from shared.contracts import OCR_DOCUMENT, OcrPayload, OcrResult, Page, PageSummary
from shared.ids import IdKind, encode
from shared.jobs.context import Done, Handler, JobContext
from shared.jobs.errors import JobError, PermanentError, RetryableError
from shared.settings import Settings
from shared.storage import ObjectMissing, Storage
from shared.storage.leftovers import sweep

from .saving import Saving, document_gone

__all__ = ["DocumentReader", "WorkerDeps", "build"]

_STARTED: Final = 5
_READ: Final = 95
# Page images on their way to storage. No attempt lasts longer than an hour.
_SCRATCH: Final = "gradeline-pages-"
_SCRATCH_SECONDS: Final = 7200.0
_STOP_SECONDS: Final = 2.0
# A document whose words average less than this is looked at by a person.
_REVIEW_BELOW: Final = 0.80
# What another try may mend: a reading process that died, perhaps with the machine's memory, not the document's.
_RETRYABLE: Final = frozenset(("document.crashed_reader",))

_Pages: TypeAlias = Generator[tuple[Page, Path], None, None]

_FIND_DOCUMENT: Final = "SELECT storage_key, media_type FROM documents WHERE id = %s AND org_id = %s"
_FIND_STUDENT: Final = "SELECT student_name FROM submissions WHERE id = %s AND org_id = %s"


class WorkerDeps(Protocol):
    """What a worker hands to its handlers."""

    @property
    def settings(self) -> Settings: ...

    @property
    def storage(self) -> Storage: ...

    def on_close(self, close: Callable[[], None], /) -> None:
        """Have ``close`` called when the worker process ends."""


def build(deps: WorkerDeps) -> Handler[OcrPayload, OcrResult]:
    """The handler of ``ocr.document``. Its processes start with the first job and end with the worker."""
    sweep(Path(gettempdir()), _SCRATCH, older_than=_SCRATCH_SECONDS)
    reader = DocumentReader(deps.settings, deps.storage)
    deps.on_close(reader.close)
    return Handler(OCR_DOCUMENT, reader.run)


@dataclass(frozen=True, slots=True)
class _Source:
    storage_key: str
    media_type: str
    student_name: str | None  # of the submission, when somebody gave it at upload


class DocumentReader:
    """``run`` is safe to call from several threads: they share one pool of reading processes."""

    def __init__(self, settings: Settings, storage: Storage, pool: ReaderPool | None = None) -> None:
        self._settings = settings
        self._storage = storage
        self._pool = pool
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Load the models now, in the background, rather than with the first job."""
        self._readers()

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def run(self, ctx: JobContext, payload: OcrPayload) -> Done[OcrResult]:
        """Raises PermanentError with the ``document.*`` code of what is wrong with the file; RetryableError
        ``document.crashed_reader``; what storage and database raise."""
        ctx.progress(_STARTED, "Starting document processing")
        source = self._find(ctx, payload)
        stored: list[str] = []
        try:
            with (
                self._open(source.storage_key) as path,
                TemporaryDirectory(prefix=_SCRATCH) as folder,
                closing(self._read(ctx, path, source, Path(folder))) as reading,
            ):
                pages = []
                for page, image in reading:
                    # Of this attempt alone: one that fails deletes its images, never those of a reading that stands.
                    key = f"pages/{payload.document_id}/{ctx.job.id}/{ctx.job.attempt}/{page.number}.jpg"
                    self._storage.put_file(key, image, "image/jpeg", consume=True)
                    stored.append(key)
                    pages.append(page.model_copy(update={"image_key": key}))
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._storage.delete(stored)
            raise
        ctx.progress(_READ, "Processing complete, cleaning up files")
        pages.sort(key=lambda page: page.number)
        return _done(ctx, payload, source, tuple(pages))

    @contextmanager
    def _open(self, storage_key: str) -> Iterator[Path]:
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._storage.open_local(storage_key))
            except ObjectMissing:
                raise PermanentError(
                    "document.files_gone", "The file was deleted after its retention time. Please upload it again."
                ) from None
            yield path

    def _read(self, ctx: JobContext, path: Path, source: _Source, folder: Path) -> _Pages:
        return _Reading(ctx, self._readers(), path, source.media_type, folder).pages(self._settings.max_pages)

    def _readers(self) -> ReaderPool:
        with self._lock:
            if self._pool is None:
                settings = self._settings
                self._pool = ReaderPool(settings.ocr_processes, settings.ocr_memory_bytes, warm=True)
            return self._pool

    def _find(self, ctx: JobContext, payload: OcrPayload) -> _Source:
        student_name: str | None = None
        with ctx.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(_FIND_DOCUMENT, (payload.document_id, ctx.job.org_id)).fetchone()
            if row is None:
                raise document_gone()
            if payload.submission_id is not None:
                submission = cursor.execute(_FIND_STUDENT, (payload.submission_id, ctx.job.org_id)).fetchone()
                student_name = submission[0] if submission is not None else None
        return _Source(row[0], row[1], student_name)


class _Reading:
    """The pages of one document, at most ``pool.processes`` under way at a time, cancelled together."""

    def __init__(self, ctx: JobContext, pool: ReaderPool, path: Path, media_type: str, folder: Path) -> None:
        self._ctx = ctx
        self._pool = pool
        self._path = path
        self._media_type = media_type
        self._folder = folder
        self._lock = threading.Lock()
        self._stopped = False
        self._under_way: dict[Pending[Page], Path] = {}
        self._inspection: Pending[DocumentInfo] | None = None

    def pages(self, max_pages: int) -> _Pages:
        """Each page with the file of its image, as they get ready. Raises JobError, and interrupts of the job."""
        with self._ctx.on_interrupt(self._stop), self._stopping_on_error(), self._as_job_errors():
            inspection = self._pool.inspect(self._path, self._media_type, max_pages)
            with self._lock:
                self._inspection = inspection
                stopped = self._stopped
            if stopped:
                inspection.cancel()
            total = inspection.result().pages
            numbers = iter(range(1, total + 1))
            finished = 0
            self._ctx.progress(_STARTED, f"Processing image 1 of {total}")
            for number in numbers:
                self._submit(number)
                if len(self._under_way) == self._pool.processes:
                    break
            while self._under_way:
                done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
                for pending in done:
                    assert isinstance(pending, Pending)
                    with self._lock:
                        image = self._under_way.pop(pending)
                    page = pending.result()
                    finished += 1
                    following = next(numbers, None)
                    if following is not None:
                        self._submit(following)
                    yield page, image
                    percent = _STARTED + (_READ - _STARTED) * finished // total
                    self._ctx.progress(percent, f"Processing image {min(finished + 1, total)} of {total}")

    def _submit(self, number: int) -> None:
        image = self._folder / f"{number}.jpg"
        pending = self._pool.read_page(self._path, self._media_type, number, image)
        with self._lock:
            self._under_way[pending] = image
            stopped = self._stopped
        if stopped:
            pending.cancel()

    def _stop(self) -> None:
        """From another thread: kills what reads now; the waiting thread then sees CancelledError."""
        with self._lock:
            self._stopped = True
            under_way = list(self._under_way)
            inspection = self._inspection
        if inspection is not None:
            inspection.cancel()
        for pending in under_way:
            pending.cancel()

    @contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._stop()
            # Until the processes are gone: they may still write to the folder that is removed next.
            wait(list(self._under_way), timeout=_STOP_SECONDS)
            raise

    @contextmanager
    def _as_job_errors(self) -> Iterator[None]:
        try:
            yield
        except DocumentError as error:
            raise _job_error(error) from None
        except CancelledError:
            self._interrupted()

    def _interrupted(self) -> NoReturn:
        self._ctx.check()
        # Nobody interrupted this job: the pool was closed under it.
        raise RetryableError("document.crashed_reader", "The reader was stopped. The document is read again shortly.")


def _job_error(error: DocumentError) -> JobError:
    kind = RetryableError if error.code in _RETRYABLE else PermanentError
    return kind(error.code, error.message)


def _done(ctx: JobContext, payload: OcrPayload, source: _Source, pages: tuple[Page, ...]) -> Done[OcrResult]:
    fields = find_fields(pages)
    words = [word.confidence for page in pages for line in page.lines for word in line.words]
    confidence = sum(words) / len(words) if words else 0.0

    def value(name: FieldName) -> str | None:
        return fields[name].value if name in fields else None

    student_name = source.student_name or value("student_name")
    needs_review = confidence < _REVIEW_BELOW or any(not field.sure for field in fields.values())
    if payload.submission_id is not None:
        needs_review = needs_review or student_name is None
    result = OcrResult(
        document_id=_public(IdKind.DOCUMENT, payload.document_id),
        submission_id=_public(IdKind.SUBMISSION, payload.submission_id) if payload.submission_id else None,
        pages=tuple(
            PageSummary(number=p.number, source=p.source, lines=len(p.lines), confidence=p.confidence) for p in pages
        ),
        confidence=confidence,
        needs_review=needs_review,
        student_name=student_name,
        school=value("school"),
        grade_level=value("grade_level"),
    )
    saving = Saving(ctx.job.org_id, payload.document_id, payload.submission_id, pages, fields, needs_review)
    return Done(result, effects=(saving,))


def _public(kind: IdKind, value: UUID) -> str:
    return encode(kind, value)
