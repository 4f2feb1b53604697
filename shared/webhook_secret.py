"""Each organisation's webhook secret, derived from the deployment's key so that no secret lies in the database."""

from __future__ import annotations

import base64
import hashlib
import hmac
from uuid import UUID

__all__ = ["organisation_secret"]


def organisation_secret(signing_key: bytes, org_id: UUID, version: int = 1) -> str:
    """The organisation's Standard Webhooks secret: ``whsec_`` and 32 bytes in base64.

    HMAC-SHA256 under ``signing_key``, so one secret says nothing about another or about the key. Raising
    ``version`` rotates one organisation's secret; a new ``signing_key`` rotates all. The same inputs give the
    same secret for ever: consumers keep it. Raises ValueError for a key under 32 bytes or a version below 1.
    """
    if len(signing_key) < 32:
        raise ValueError("the signing key must have at least 32 bytes")
    if version < 1:
        raise ValueError("versions of a webhook secret begin at 1")
    message = b"gradeline.webhook-secret.v%d." % version + org_id.bytes
    return "whsec_" + base64.b64encode(hmac.digest(signing_key, message, hashlib.sha256)).decode()
