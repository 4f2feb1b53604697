"""Cursor paging: newest first, the cursor is the last id seen."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import falcon.asgi

from shared.ids import IdKind, InvalidId, decode

from .errors import Problem

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "page", "page_request"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


def page_request(req: falcon.asgi.Request, kind: IdKind) -> tuple[UUID | None, int]:
    """``cursor`` and ``limit`` of a list request. Raises Problem naming the parameter."""
    try:
        limit = int(req.get_param("limit") or DEFAULT_LIMIT)
    except ValueError:
        limit = 0
    if not 1 <= limit <= MAX_LIMIT:
        raise Problem(422, "request.invalid", f"limit must be a number from 1 to {MAX_LIMIT}.", param="limit")
    cursor = req.get_param("cursor")
    if cursor is None:
        return None, limit
    try:
        return decode(kind, cursor), limit
    except InvalidId:
        raise Problem(
            422, "request.invalid", "cursor must be the next_cursor of the page before.", param="cursor"
        ) from None


def page(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """The answer of a list, from up to ``limit + 1`` items: one more than fits says that there is a next page."""
    more = len(items) > limit
    shown = items[:limit]
    return {"items": shown, "has_more": more, "next_cursor": shown[-1]["id"] if more else None}
