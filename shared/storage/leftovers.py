"""Temporary files that killed processes left behind: they may hold student work, so they do not stay."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["sweep"]


def sweep(folder: Path, prefix: str, *, older_than: float) -> int:
    """Delete what in ``folder`` begins with ``prefix`` and was last changed over ``older_than`` seconds ago.

    Returns how many went. Never raises: what is gone already, or another account's, is left. Links are unlinked, not
    followed.
    """
    swept = 0
    for leftover in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - leftover.lstat().st_mtime <= older_than:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
            swept += 1
    return swept
