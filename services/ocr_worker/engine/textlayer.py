"""The text that a PDF page itself carries, and whether it may be trusted instead of OCR. Runs in the child only."""

from __future__ import annotations

import unicodedata
from ctypes import byref, c_int
from typing import Any, Final

import pypdfium2.raw as pdf

from shared.contracts import Line, Word

from .errors import DocumentError
from .layout import Fragment, arrange, union
from .limits import MAX_WORDS

__all__ = ["text_layer"]

# Fewer printed characters than this is a page number or the leavings of a font without a Unicode map (2–5 seen).
_MIN_CHARACTERS: Final = 16
# The share of characters without meaning (private use, control, unassigned, unmapped) above which the map is broken.
_MAX_MEANINGLESS: Final = 0.1
# A page mostly under pictures with less text than this is a scan with a stamp or header on it.
_SCAN_COVER: Final = 0.5
_SCAN_MAX_WORDS: Final = 30
# What a student adds to a worksheet on a tablet, and what forms hold: none of it is in the text layer.
_WRITTEN: Final = (pdf.FPDF_ANNOT_FREETEXT, pdf.FPDF_ANNOT_INK, pdf.FPDF_ANNOT_STAMP, pdf.FPDF_ANNOT_WIDGET)
# Times the line height: a gap that parts words, and one that parts columns.
_WORD_GAP: Final = 0.3
_COLUMN_GAP: Final = 1.5
_SUBPIXEL: Final = 16  # FPDF_PageToDevice answers in whole device units

_Char = tuple[str, float, float, float, float]


def text_layer(page: Any, width: int, height: int) -> tuple[Line, ...] | None:
    """The lines of an open page with boxes in a ``width`` × ``height`` image of it; None: read the image instead.

    None too when something on the page is not in its text: handwriting, filled form fields, a scan.
    """
    if _has_writing(page):
        return None
    textpage = page.get_textpage()
    try:
        characters = _characters(page, textpage, width, height)
    finally:
        textpage.close()
    if characters is None:
        return None
    fragments = _fragments(characters)
    words = sum(len(fragment.words) for fragment in fragments)
    if words < _SCAN_MAX_WORDS and _picture_cover(page) > _SCAN_COVER:
        return None
    return arrange(fragments)


def _has_writing(page: Any) -> bool:
    for index in range(pdf.FPDFPage_GetAnnotCount(page)):
        annotation = pdf.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            if pdf.FPDFAnnot_GetSubtype(annotation) in _WRITTEN:
                return True
        finally:
            pdf.FPDFPage_CloseAnnot(annotation)
    return False


def _characters(page: Any, textpage: Any, width: int, height: int) -> list[_Char] | None:
    """Characters with boxes in pixels, ("", …) where a line ends; None when the layer is not sound."""
    count = pdf.FPDFText_CountChars(textpage)
    if count < _MIN_CHARACTERS:
        return None
    if count > MAX_WORDS * 8:
        raise DocumentError("document.too_large")
    found: list[_Char] = []
    printed = meaningless = 0
    rectangle = pdf.FS_RECTF()
    x, y = c_int(), c_int()
    for index in range(count):
        code = pdf.FPDFText_GetUnicode(textpage, index)
        text = chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if text in "\r\n":
            found.append(("", 0, 0, 0, 0))
            continue
        if text.isspace():
            found.append((" ", 0, 0, 0, 0))
            continue
        if text in "\u00ad\u0002\ufffe":  # a hyphen at a line's end, as PDFium marks it
            text = "-"
        printed += 1
        if (
            text == "\ufffd"
            or unicodedata.category(text) in ("Cc", "Co", "Cn", "Cs")
            or pdf.FPDFText_HasUnicodeMapError(textpage, index) == 1
        ):
            meaningless += 1
            continue
        if not pdf.FPDFText_GetLooseCharBox(textpage, index, byref(rectangle)):
            continue
        corners: list[tuple[float, float]] = []
        for px, py in ((rectangle.left, rectangle.top), (rectangle.right, rectangle.bottom)):
            pdf.FPDF_PageToDevice(page, 0, 0, width * _SUBPIXEL, height * _SUBPIXEL, 0, px, py, byref(x), byref(y))
            corners.append((x.value / _SUBPIXEL, y.value / _SUBPIXEL))
        (xa, ya), (xb, yb) = corners
        found.append((text, min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)))
    if printed - meaningless < _MIN_CHARACTERS or meaningless > _MAX_MEANINGLESS * printed:
        return None
    return found


def _fragments(characters: list[_Char]) -> list[Fragment]:
    fragments: list[Fragment] = []
    words: list[Word] = []
    pending: list[_Char] = []

    def end_word() -> None:
        if pending:
            box = union([(c[1], c[2], c[3], c[4]) for c in pending])
            words.append(Word(text="".join(c[0] for c in pending), confidence=1.0, box=box))
            pending.clear()

    def end_fragment() -> None:
        end_word()
        if words:
            fragments.append(Fragment(tuple(words), union([word.box for word in words])))
            words.clear()

    for character in characters:
        if character[0] == "":
            end_fragment()
            continue
        if character[0] == " ":
            end_word()
            continue
        before = pending[-1][1:] if pending else words[-1].box if words else None
        if before is not None:
            tall = max(before[3] - before[1], character[4] - character[2])
            gap = character[1] - before[2]
            overlap = min(before[3], character[4]) - max(before[1], character[2])
            if gap > _COLUMN_GAP * tall or gap < -tall or overlap <= 0:
                end_fragment()
            elif pending and gap > _WORD_GAP * tall:
                end_word()
        pending.append(character)
    end_fragment()
    return fragments


def _picture_cover(page: Any) -> float:
    """The share of the page that lies under pictures (counted twice where two overlap)."""
    area = page.get_width() * page.get_height()
    covered = 0.0
    for index, picture in enumerate(page.get_objects(filter=(pdf.FPDF_PAGEOBJ_IMAGE,), max_depth=3)):
        left, bottom, right, top = picture.get_bounds()
        covered += max(0.0, right - left) * max(0.0, top - bottom)
        if index > 1000:
            break
    return covered / area if area > 0 else 0.0
