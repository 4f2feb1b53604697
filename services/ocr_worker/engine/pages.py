"""Opens a document of any accepted type and gives its pages as upright RGB images. Runs in the child only.

Everything read here is hostile until shown otherwise: types by content, formats pinned, pixels counted before
they are decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pillow_heif
import pypdfium2 as pdfium
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shared.media import SNIFF_BYTES, MediaType, sniff

from .errors import DocumentError
from .limits import MAX_IMAGE_PIXELS, MAX_JPEG_PIXELS, MAX_LONG_SIDE, PDF_DPI, fit

__all__ = ["Document", "PdfDocument", "PictureDocument", "Rgb", "open_document", "save_jpeg"]

Rgb: TypeAlias = NDArray[np.uint8]  # height × width × 3

_FORMATS: Final[dict[MediaType, tuple[str, ...]]] = {
    "image/png": ("PNG",),
    "image/jpeg": ("JPEG", "MPO"),  # MPO: a phone's JPEG with a second picture behind the first
    "image/webp": ("WEBP",),
    "image/tiff": ("TIFF",),
    "image/heic": ("HEIF",),
}
_POINTS_PER_INCH: Final = 72
_TIFF_SUBFILE_TYPE: Final = 254
_TIFF_REDUCED: Final = 1  # bit: a smaller version of another page
# PDFium error codes (fpdfview.h), which pypdfium2 puts into the exception.
_PDF_ERR_PASSWORD: Final = 4
_PDF_ERR_SECURITY: Final = 5

pillow_heif.register_heif_opener(thumbnails=False)
pillow_heif.options.DECODE_THREADS = 1


class Document(Protocol):
    """An open document. Pages count from 1."""

    @property
    def pages(self) -> int: ...

    def render(self, number: int) -> Rgb:
        """The page as it is meant to be looked at, long side at most MAX_LONG_SIDE. Raises DocumentError."""


@contextmanager
def open_document(path: Path, media_type: str, max_pages: int) -> Iterator[Document]:
    """Open by content: ``media_type`` decides nothing but the wording when the content is of no known type.

    Raises DocumentError: empty, not_readable, unsupported, encrypted, too_many_pages, too_large.
    """
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    if not head:
        raise DocumentError("document.empty")
    kind = sniff(head)
    if kind is None:
        raise DocumentError("document.not_readable" if media_type in _KNOWN else "document.unsupported")
    if kind == "application/pdf":
        with _open_pdf(path, max_pages) as pdf:
            yield pdf
    else:
        with _decoding():
            image = Image.open(path, formats=_FORMATS[kind])
        with image:
            yield PictureDocument(image, max_pages)


def save_jpeg(image: Rgb, path: Path) -> None:
    """Write the page image for display: quality 80, no metadata of the original."""
    Image.fromarray(image).save(path, "JPEG", quality=80)


_KNOWN: Final = frozenset((*_FORMATS, "application/pdf"))


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever Pillow and its codecs raise into DocumentError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except DocumentError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            raise DocumentError("document.too_large") from None
        except Exception:  # codecs raise OSError, SyntaxError, ValueError, struct.error, EOFError, RuntimeError …
            raise DocumentError("document.not_readable") from None


class PictureDocument:
    """A picture, or a TIFF of several pages. Animations and a phone's second pictures count as one page."""

    def __init__(self, image: Image.Image, max_pages: int) -> None:
        self._image = image
        with _decoding():
            _check_pixels(image)
            self._frames = self._find_frames(max_pages) if image.format == "TIFF" else [0]

    @property
    def pages(self) -> int:
        return len(self._frames)

    def render(self, number: int) -> Rgb:
        with _decoding():
            if not 1 <= number <= self.pages:
                raise DocumentError("document.not_readable")
            image = self._image
            if self.pages > 1 or self._frames[0] != 0:
                image.seek(self._frames[number - 1])
            _check_pixels(image)
            if image.format in ("JPEG", "MPO"):
                image.draft("RGB", (MAX_LONG_SIDE, MAX_LONG_SIDE))
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise DocumentError("document.too_large")
            upright = _shrunk(_opaque(ImageOps.exif_transpose(image)))
            return np.asarray(upright, dtype=np.uint8)

    def _find_frames(self, max_pages: int) -> list[int]:
        frames: list[int] = []
        index = 0
        while True:
            try:
                self._image.seek(index)
            except EOFError:
                break
            tags: Any = getattr(self._image, "tag_v2", {})
            if not tags.get(_TIFF_SUBFILE_TYPE, 0) & _TIFF_REDUCED:
                frames.append(index)
            index += 1
            if len(frames) > max_pages or index > 4 * max_pages:
                raise DocumentError("document.too_many_pages")
        if not frames:
            raise DocumentError("document.empty")
        self._image.seek(frames[0])
        return frames


def _check_pixels(image: Image.Image) -> None:
    cap = MAX_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MAX_IMAGE_PIXELS
    if image.width * image.height > cap:
        raise DocumentError("document.too_large")


def _opaque(image: Image.Image) -> Image.Image:
    """As RGB on white paper."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        levels = np.asarray(image, dtype=np.float32)
        top = float(levels.max(initial=0.0))
        scale = 255 / 65535 if top > 255 else 1.0
        return Image.fromarray(np.clip(levels * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _shrunk(image.convert("RGBA"))
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        return paper
    return image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    size = fit(image.width, image.height)
    # reducing_gap: a cheap integer reduction first, then the filter; within rounding of the filter alone.
    return image if size == image.size else image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)


class PdfDocument:
    """A PDF. ``raw`` is PDFium's own document, for the text layer."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @property
    def pages(self) -> int:
        return len(self.raw)

    def render(self, number: int) -> Rgb:
        page = self.page(number)
        try:
            width, height = self.size_in_pixels(page)
            scale = max(width / page.get_width(), height / page.get_height())
            # ceil() inside pypdfium2 may add one pixel; the image's own size is the truth from here on.
            bitmap = page.render(scale=scale, rev_byteorder=True, force_bitmap_format=pdfium.raw.FPDFBitmap_BGR)
            try:
                return np.array(bitmap.to_numpy()[:, :, :3], dtype=np.uint8)
            finally:
                bitmap.close()
        except MemoryError:
            raise DocumentError("document.too_large") from None
        except (pdfium.PdfiumError, ValueError, ZeroDivisionError):
            raise DocumentError("document.not_readable") from None
        finally:
            page.close()

    def page(self, number: int) -> Any:
        try:
            return self.raw[number - 1]
        except (pdfium.PdfiumError, IndexError):
            raise DocumentError("document.not_readable") from None

    @staticmethod
    def size_in_pixels(page: Any) -> tuple[int, int]:
        return fit(page.get_width(), page.get_height(), scale=PDF_DPI / _POINTS_PER_INCH)


@contextmanager
def _open_pdf(path: Path, max_pages: int) -> Iterator[PdfDocument]:
    try:
        raw = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        locked = getattr(error, "err_code", None) in (_PDF_ERR_PASSWORD, _PDF_ERR_SECURITY)
        raise DocumentError("document.encrypted" if locked else "document.not_readable") from None
    try:
        if len(raw) == 0:
            raise DocumentError("document.empty")
        if len(raw) > max_pages:
            raise DocumentError("document.too_many_pages")
        with suppress(pdfium.PdfiumError):  # form fields are drawn only by a form environment
            raw.init_forms()
        yield PdfDocument(raw)
    finally:
        raw.close()


Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS  # Pillow's own net, before ours: it warns above, and warnings are errors here
