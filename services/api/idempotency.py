"""Idempotency-Key: the same key and request get the first answer; the key is stored in the accepting transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import falcon.asgi
import psycopg

from shared.jobs.queries import Viewer

from .errors import Problem

__all__ = ["IdempotencyKey", "Replay"]

_FIND = """
select request_hash, resource_id from idempotency_keys
 where org_id = %(org_id)s and member_id = %(member_id)s and key = %(key)s
"""
_KEEP = """
insert into idempotency_keys (org_id, member_id, key, request_hash, resource_id)
values (%(org_id)s, %(member_id)s, %(key)s, %(request_hash)s, %(resource_id)s)
on conflict do nothing returning key
"""

Connection = psycopg.AsyncConnection[dict[str, Any]]


class Replay(Exception):
    """The request was accepted before; answer with the resource it made then."""

    def __init__(self, resource_id: UUID) -> None:
        super().__init__(resource_id)
        self.resource_id = resource_id


class IdempotencyKey:
    """The key of one request, or its absence: then every call is a no-op."""

    def __init__(self, req: falcon.asgi.Request, viewer: Viewer) -> None:
        self.text: str | None = req.get_header("Idempotency-Key")
        if self.text is not None and not (1 <= len(self.text) <= 255 and self.text.isprintable()):
            raise Problem(
                400,
                "idempotency.invalid_key",
                "Idempotency-Key must be 1 to 255 printable characters.",
                param="Idempotency-Key",
            )
        self._org_id = viewer.org_id
        self._member_id = viewer.member_id
        self._route = f"{req.method} {req.uri_template}"
        self._hash = b""

    def seal(self, parts: Iterable[bytes]) -> None:
        """Fix what the request was: its route and the parts of its content, in order."""
        hashed = hashlib.sha256(self._route.encode())
        for part in parts:
            hashed.update(len(part).to_bytes(8, "big"))
            hashed.update(part)
        self._hash = hashed.digest()

    async def check(self, conn: Connection) -> None:
        """Raises Replay when this very request was accepted, Problem when the key was used for another."""
        if self.text is None:
            return
        row = await (await conn.execute(_FIND, self._parameters())).fetchone()
        if row is not None:
            self._compare(row)

    async def keep(self, conn: Connection, resource_id: UUID) -> None:
        """Store the key with what it made, inside the accepting transaction. Raises as ``check``: a twin that was
        committed meanwhile wins, and this transaction is rolled back."""
        if self.text is None:
            return
        parameters = {**self._parameters(), "request_hash": self._hash, "resource_id": resource_id}
        if await (await conn.execute(_KEEP, parameters)).fetchone() is None:
            await self.check(conn)

    def _parameters(self) -> dict[str, Any]:
        return {"org_id": self._org_id, "member_id": self._member_id, "key": self.text}

    def _compare(self, row: dict[str, Any]) -> None:
        if bytes(row["request_hash"]) != self._hash:
            raise Problem(
                422,
                "idempotency.key_reused",
                "This Idempotency-Key was used for another request. Use a new key for new work.",
                param="Idempotency-Key",
            )
        raise Replay(row["resource_id"])
