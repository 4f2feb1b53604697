"""Opening files that somebody else made: a process that reads hostile documents writes the page images."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

__all__ = ["open_regular"]


def open_regular(path: Path) -> io.BufferedReader:
    """``path`` for reading, if it is a plain file: neither a link (to a secret, say) nor a pipe, whose open would
    wait for ever. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a plain file")
    return os.fdopen(fd, "rb")
