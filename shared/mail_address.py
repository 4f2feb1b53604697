"""What counts as one mail address here: asked at the door and again before a mail is sent."""

from __future__ import annotations

import re

__all__ = ["is_mail_address"]

# RFC 5321 in the part that mail servers take without SMTPUTF8, without quoted local parts and address literals.
_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+)*"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
)


def is_mail_address(text: str) -> bool:
    """One plain address, at most 254 characters, at most 64 before the @."""
    return len(text) <= 254 and len(text.partition("@")[0]) <= 64 and _ADDRESS.fullmatch(text) is not None
