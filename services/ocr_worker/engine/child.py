"""What runs in the reading process: it alone opens documents, and it may be killed at any moment.

It answers requests over one socket in JSON (never pickle: a document that takes this process over must not take the
worker with it). The functions here can be called in-process too, for tests and benchmarks.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from shared.contracts import Page

from .errors import DocumentError
from .limits import MAX_WORDS, confine, limit_cpu
from .sandbox import confine_to, deny_system_calls
from .wire import Closed, receive, send

if TYPE_CHECKING:
    from .recognise import Recogniser

__all__ = ["ENVIRONMENT", "DocumentInfo", "initialise", "inspect", "load", "read_page", "serve"]

# One thread: processes are the unit of parallelism, and a process with one thread can be forked.
# ONNX Runtime's official builds report usage to Microsoft from 1.29 on unless told not to.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


class DocumentInfo(BaseModel):
    pages: int


@cache
def _recogniser() -> Recogniser:
    from .recognise import Recogniser

    return Recogniser()


def load() -> None:
    """Import the OCR libraries and load the models, once. About a second and 150 MB."""
    for name, value in ENVIRONMENT.items():
        os.environ[name] = value
    _recogniser()
    from . import textlayer  # noqa: F401


def initialise(memory_bytes: int) -> None:
    """Make this process fit to open hostile files: limited, loaded."""
    load()
    confine(memory_bytes)


def inspect(path: Path, media_type: str, max_pages: int) -> DocumentInfo:
    """How many pages the document has. Raises DocumentError when it cannot be read at all."""
    from .pages import open_document

    with open_document(path, media_type, max_pages) as document:
        return DocumentInfo(pages=document.pages)


def read_page(path: Path, media_type: str, number: int, image_path: Path, max_pages: int = sys.maxsize) -> Page:
    """Read page ``number`` (from 1) and write its upright image to ``image_path`` as JPEG. Raises DocumentError."""
    from .layout import mean_confidence
    from .pages import PdfDocument, open_document, save_jpeg
    from .textlayer import text_layer

    rotation = 0
    source: Literal["text_layer", "ocr", "blank"]
    with open_document(path, media_type, max_pages) as document:
        image = document.render(number)
        lines = None
        if isinstance(document, PdfDocument):
            page = document.page(number)
            try:
                lines = text_layer(page, image.shape[1], image.shape[0])
            finally:
                page.close()
    if lines is not None:
        source = "text_layer"
    else:
        reading = _recogniser().read(image)
        image, rotation, lines = reading.image, reading.rotation, reading.lines
        source = "ocr" if lines else "blank"
    if sum(len(line.words) for line in lines) > MAX_WORDS:
        raise DocumentError("document.too_large")
    save_jpeg(image, image_path)
    height, width = image.shape[:2]
    return Page(
        number=number,
        width=width,
        height=height,
        rotation=rotation,
        source=source,
        confidence=mean_confidence(lines),
        lines=lines,
    )


def serve(channel: socket.socket, memory_bytes: int, *, one_document: bool = False) -> None:
    """Answer requests until the other end closes. Models must be loaded.

    With ``one_document`` the first request's file, and the folder of its image, are the only ones that can be opened
    from then on (see ``sandbox``).
    """
    confine(memory_bytes)
    deny_system_calls()
    while True:
        try:
            request = json.loads(receive(channel))
            send(channel, b"")  # taken: from here on the document may be to blame
            if one_document:
                image = request.get("image_path")
                confine_to(Path(request["path"]), Path(image).parent if image else None)
                one_document = False
            send(channel, _answer(request))
        except Closed:
            return
        _trim()


def _answer(request: dict[str, Any]) -> bytes:
    try:
        limit_cpu(float(request["cpu_seconds"]))
        path, media_type = Path(request["path"]), request["media_type"]
        answer: BaseModel
        if request["call"] == "inspect":
            answer = inspect(path, media_type, request["max_pages"])
        else:
            answer = read_page(path, media_type, request["number"], Path(request["image_path"]))
        return b'{"ok":' + answer.model_dump_json().encode() + b"}"
    except DocumentError as error:
        return _refusal(error.code)
    except MemoryError:
        return _refusal("document.too_large")
    except Exception as error:  # libraries raise anything; its text may quote the document, its type does not
        if "alloc" in str(error).lower():  # ONNX Runtime and OpenCV, out of memory
            return _refusal("document.too_large")
        return _refusal("document.crashed_reader", type(error).__name__)


def _refusal(code: str, kind: str | None = None) -> bytes:
    return json.dumps({"error": code, "kind": kind}).encode()


def _trim() -> None:
    """Give freed memory back to the system, so that an idle child is small."""
    if sys.platform == "linux":
        trim = getattr(_libc(), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
