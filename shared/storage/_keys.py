"""Which keys are allowed: the same set for every store, so that moving from folder to bucket changes nothing."""

from __future__ import annotations

import re

from ._errors import InvalidKey

__all__ = ["check_key"]

_MAX_KEY = 512  # S3 allows 1024 bytes; half leaves room for a root folder under PATH_MAX
# A segment starts with a letter or digit: so no "..", no hidden file, and nothing that reads as an option.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,199}(?:/[A-Za-z0-9][A-Za-z0-9._\-]{0,199})*")


def check_key(key: str) -> str:
    """The key itself when it is relative, of ``[A-Za-z0-9._-]`` segments and at most 512 characters.

    Raises InvalidKey, which does not repeat the key: a name that came from outside may be in it.
    """
    if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
        raise InvalidKey("a storage key is a relative path of letters, digits, '.', '_' and '-', 512 at most")
    return key
