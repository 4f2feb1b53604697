"""What a document may cost, and how a child process is held to it."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

__all__ = [
    "MAX_IMAGE_PIXELS",
    "MAX_JPEG_PIXELS",
    "MAX_LONG_SIDE",
    "MAX_REPLY_BYTES",
    "MAX_WORDS",
    "PDF_DPI",
    "confine",
    "fit",
    "limit_cpu",
]

# Decoded in full, so about 150 MB as RGB. Phones deliver up to 50 MP as HEIC; a 9000² PNG is a bomb.
MAX_IMAGE_PIXELS: Final = 51_000_000
# JPEGs are decoded at 1/2 to 1/8 by their own DCT, so a 108 MP phone picture costs no more than 27 MP.
MAX_JPEG_PIXELS: Final = 120_000_000
# Of the page image that is stored, shown and read: 255 dpi of A4. Larger costs time and reads no better.
MAX_LONG_SIDE: Final = 3000
PDF_DPI: Final = 200
# A dense page has about 1,000 words; 50 times that is no page of student work.
MAX_WORDS: Final = 50_000
MAX_REPLY_BYTES: Final = 32 * 1024 * 1024


def fit(width: float, height: float, *, scale: float = 1.0) -> tuple[int, int]:
    """``width`` × ``height`` times ``scale``, shrunk to MAX_LONG_SIDE, at least 1 × 1, in whole pixels."""
    scale = min(scale, MAX_LONG_SIDE / max(width, height, 1e-9))
    return max(1, round(width * scale)), max(1, round(height * scale))


def confine(memory_bytes: int) -> None:
    """Hold this process to ``memory_bytes`` of address space, no core dump (it would hold student work), no new files
    above 1 GiB. Where the system does not know a limit (macOS has no RLIMIT_AS), that one is left out."""
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 1 << 30),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (value, value))


def limit_cpu(seconds: float) -> None:
    """From now on this process may use ``seconds`` of CPU; then SIGXCPU ends it. Call again to grant more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
