"""Writes a reading in the transaction that finishes its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from services.ocr_worker.fields import Field, FieldName
from shared.contracts import Page
from shared.jobs.errors import PermanentError

__all__ = ["Saving", "document_gone"]

_DELETE_PAGES: Final = "DELETE FROM document_pages WHERE document_id = %s AND org_id = %s"

_INSERT_PAGE: Final = """
INSERT INTO document_pages
       (document_id, org_id, number, width, height, rotation, source, confidence, image_key, lines)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

_UPDATE_DOCUMENT: Final = "UPDATE documents SET page_count = %s, read_at = now() WHERE id = %s AND org_id = %s"

# A submission may be read again: both states are accepted. What a person entered as the name stays, and so does
# the flag of doubtful marks: only the reading's own part of it is replaced.
_UPDATE_SUBMISSION: Final = """
UPDATE submissions
   SET status = 'read',
       student_name = coalesce(student_name, %(student_name)s),
       school = %(school)s,
       grade_level = %(grade_level)s,
       fields = %(fields)s,
       needs_review = %(needs_review)s OR EXISTS (
           SELECT FROM gradings g
            WHERE g.submission_id = submissions.id AND g.org_id = submissions.org_id AND g.needs_review
       ),
       updated_at = now()
 WHERE id = %(id)s AND org_id = %(org_id)s AND status IN ('reading', 'read')
"""


@dataclass(frozen=True, slots=True)
class Saving:
    """Replaces the document's pages, marks it read, and fills its submission. Repeatable: the last one stands.

    Raises PermanentError ``document.gone`` when the document was deleted while it was read.
    """

    org_id: UUID
    document_id: UUID
    submission_id: UUID | None
    pages: tuple[Page, ...]
    fields: Mapping[FieldName, Field]
    needs_review: bool

    def __call__(self, connection: psycopg.Connection[Any]) -> None:
        # The document first: its row lock orders two readings of one document.
        updated = connection.execute(_UPDATE_DOCUMENT, (len(self.pages), self.document_id, self.org_id))
        if updated.rowcount == 0:
            raise document_gone()  # its submission went with it
        connection.execute(_DELETE_PAGES, (self.document_id, self.org_id))
        with connection.cursor() as cursor:
            cursor.executemany(_INSERT_PAGE, [self._row(page) for page in self.pages])
        if self.submission_id is not None:
            connection.execute(_UPDATE_SUBMISSION, self._submission(self.submission_id))

    def _row(self, page: Page) -> tuple[object, ...]:
        return (
            self.document_id,
            self.org_id,
            page.number,
            page.width,
            page.height,
            page.rotation,
            page.source,
            page.confidence,
            page.image_key,
            Jsonb([line.model_dump(mode="json") for line in page.lines]),
        )

    def _submission(self, submission_id: UUID) -> dict[str, object]:
        def value(name: FieldName) -> str | None:
            return _storable(self.fields[name].value) if name in self.fields else None

        return {
            "id": submission_id,
            "org_id": self.org_id,
            "student_name": value("student_name"),
            "school": value("school"),
            "grade_level": value("grade_level"),
            "fields": Jsonb({name: field.as_json() for name, field in self.fields.items()}),
            "needs_review": self.needs_review,
        }


def document_gone() -> PermanentError:
    return PermanentError("document.gone", "The document was deleted before it could be read. Upload it again.")


def _storable(text: str) -> str:
    """Postgres text holds no NUL."""
    return text.replace("\x00", "")
