"""The local provider: opens a document in a process of its own and reads it with RapidOCR.

Importing this loads no OCR library; those are loaded by the reading processes alone.
"""

from .child import DocumentInfo
from .errors import DocumentError
from .pool import PAGE_SECONDS, Pending, ReaderPool, usable_cores

__all__ = ["PAGE_SECONDS", "DocumentError", "DocumentInfo", "Pending", "ReaderPool", "usable_cores"]
