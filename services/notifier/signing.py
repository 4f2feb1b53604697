"""Standard Webhooks signatures, version 1 (standardwebhooks.com, specification of 2023-12): HMAC-SHA256."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence

__all__ = ["InvalidSecret", "InvalidSignature", "sign", "signed_headers", "verify"]

_PREFIX = "whsec_"
# "Between 24 bytes and 64 bytes" (specification, section "Signature scheme").
_MIN_BYTES, _MAX_BYTES = 24, 64
TOLERANCE_SECONDS = 300


class InvalidSecret(ValueError):
    """Not ``whsec_`` with 24 to 64 bytes in base64. The text does not repeat the secret."""


class InvalidSignature(Exception):
    """A header is absent or malformed, the time is outside the tolerance, or no signature matches."""


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """``v1,<base64>`` over ``id.timestamp.body``; ``timestamp`` in whole seconds since 1970.

    Raises InvalidSecret; ValueError for an id with a full stop, which would let two messages share a signature.
    """
    if not message_id or "." in message_id:
        raise ValueError("a webhook message id must not be empty nor contain a full stop")
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_key(secret), content, hashlib.sha256)).decode()


def signed_headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers. During a rotation pass both secrets: consumers accept any signature that matches."""
    if not secrets:
        raise InvalidSecret("at least one webhook secret is needed")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(s, message_id, timestamp, body) for s in secrets),
    }


def verify(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance: float = TOLERANCE_SECONDS,
) -> None:
    """Returns when any secret matches any ``v1`` signature and the time is within ``tolerance`` seconds of ``now``.

    Header names in any case. Raises InvalidSignature, InvalidSecret.
    """
    lower = {k.lower(): v for k, v in headers.items()}
    try:
        message_id, stamp, given = (lower[f"webhook-{k}"] for k in ("id", "timestamp", "signature"))
    except KeyError as e:
        raise InvalidSignature(f"the header {e.args[0]} is absent") from None
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise InvalidSignature("webhook-timestamp is not a number of seconds")
    if abs(now - int(stamp)) > tolerance:
        raise InvalidSignature("webhook-timestamp is too far from the present")
    try:
        expected = [sign(s, message_id, int(stamp), body).encode() for s in secrets]
    except InvalidSecret:
        raise
    except ValueError as e:
        raise InvalidSignature(str(e)) from None
    # Every pair is compared, in constant time each, so that the time taken says nothing.
    matches = [hmac.compare_digest(e, g.encode()) for e in expected for g in given.split(" ")]
    if not any(matches):
        raise InvalidSignature("no signature matches")


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSecret("a webhook secret is whsec_ followed by base64") from None
    if not secret.startswith(_PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise InvalidSecret("a webhook secret is whsec_ followed by 24 to 64 bytes in base64")
    return key
