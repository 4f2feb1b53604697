"""Why a document could not be read, in codes for programs and sentences for teachers."""

from __future__ import annotations

from typing import Final

__all__ = ["MESSAGES", "DocumentError"]

MESSAGES: Final = {
    "document.empty": "The file is empty. Export or scan it again and upload the new file.",
    "document.not_readable": (
        "The file is damaged or is not a picture or PDF. Open it on your computer to check it, "
        "save it again as PDF, JPEG or PNG, and upload that."
    ),
    "document.encrypted": "The PDF is locked with a password. Save a copy without the password and upload that.",
    "document.too_many_pages": "The document has more pages than can be read at once. Split it and upload the parts.",
    "document.too_large": (
        "The pages are too large to be read safely. Scan at 300 dpi or less, or take smaller photos, and upload again."
    ),
    "document.too_slow": (
        "A page took too long to read, as it is unusually complex. Print it to a new PDF or photograph it, "
        "and upload that."
    ),
    "document.unsupported": "Files of this type cannot be read. Save it as PDF, JPEG or PNG and upload that.",
    "document.crashed_reader": (
        "The reader stopped unexpectedly on this document. It is tried again; if that fails too, "
        "print the document to a new PDF and upload that."
    ),
}


class DocumentError(Exception):
    """A document that cannot be read. ``code`` is a key of MESSAGES; the message never holds content."""

    def __init__(self, code: str, message: str | None = None) -> None:
        text = MESSAGES[code] if message is None else message
        super().__init__(code, text)
        self.code = code
        self.message = text

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
