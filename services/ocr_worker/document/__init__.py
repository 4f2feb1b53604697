"""Job type ``ocr.document``: reads an uploaded document, page by page, into lines with places and confidence.

Importing this loads no OCR library.
"""

from .handler import DocumentReader, WorkerDeps, build

__all__ = ["DocumentReader", "WorkerDeps", "build"]
