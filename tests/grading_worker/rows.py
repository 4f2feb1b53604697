"""The rows that the gateway inserts before a worker sees a job, in a real database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from shared.contracts import AnswerKey, Page
from shared.db import SyncPool


@dataclass
class Rows:
    """Inserts for one organisation, and reads back what became of it."""

    pool: SyncPool
    org_id: UUID

    def another_organisation(self) -> Rows:
        other = Rows(self.pool, uuid4())
        other.execute("insert into organisations (id, name) values (%s, 'Another School')", other.org_id)
        return other

    def execute(self, sql: str, *values: object) -> int:
        """How many rows were touched."""
        with self.pool.connection() as conn:
            return conn.execute(sql, values).rowcount

    def one(self, table: str, id: UUID) -> dict[str, Any]:
        with self.pool.connection() as conn:
            row = conn.execute(f"select * from {table} where id = %s", (id,)).fetchone()
        assert row is not None
        return row

    def standard(self, key: AnswerKey) -> UUID:
        """At version 1."""
        id = uuid4()
        self.execute("insert into standards (id, org_id, name) values (%s, %s, 'Quiz')", id, self.org_id)
        self.execute(
            "insert into standard_versions (standard_id, version, org_id, key, max_points) values (%s, 1, %s, %s, %s)",
            *(id, self.org_id, Jsonb(key.model_dump(mode="json")), key.max_points),
        )
        return id

    def document(self, storage_key: str = "org/original", media_type: str = "application/pdf") -> UUID:
        id = uuid4()
        self.execute(
            "insert into documents (id, org_id, name, media_type, size, sha256, storage_key)"
            " values (%s, %s, 'work.pdf', %s, 1, '', %s)",
            *(id, self.org_id, media_type, storage_key),
        )
        return id

    def submission(self, document_id: UUID, student_name: str | None = None) -> UUID:
        id = uuid4()
        self.execute(
            "insert into submissions (id, org_id, document_id, job_id, student_name) values (%s, %s, %s, %s, %s)",
            *(id, self.org_id, document_id, uuid4(), student_name),
        )
        return id

    def grading(
        self,
        standard_id: UUID,
        submission_id: UUID | None = None,
        *,
        student_name: str | None = None,
        answers: Any = None,
    ) -> UUID:
        id = uuid4()
        self.execute(
            "insert into gradings (id, org_id, submission_id, standard_id, standard_version, job_id, student_name,"
            " answers) values (%s, %s, %s, %s, 1, %s, %s, %s)",
            *(id, self.org_id, submission_id, standard_id, uuid4(), student_name),
            None if answers is None else Jsonb(answers),
        )
        return id

    def read(self, document_id: UUID, pages: Sequence[Page]) -> None:
        """What reading writes: the pages of a document."""
        for p in pages:
            self.execute(
                "insert into document_pages (document_id, number, org_id, width, height, source, confidence, lines)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)",
                *(document_id, p.number, self.org_id, p.width, p.height, p.source, p.confidence),
                Jsonb([line.model_dump(mode="json") for line in p.lines]),
            )

    def pages(self, document_id: UUID) -> list[dict[str, Any]]:
        with self.pool.connection() as conn:
            cursor = conn.execute("select * from document_pages where document_id = %s order by number", (document_id,))
            return cursor.fetchall()
