"""Files a student never means to hand in: each must be refused, or be seen through, without harm."""

from __future__ import annotations

import io

import pikepdf
from PIL import Image

__all__ = ["BOMB_SIDE", "MANY_PAGES", "PASSWORD", "bad_files"]

BOMB_SIDE = 9000  # 81 million pixels in about 10 kB
MANY_PAGES = 300
PASSWORD = "open-sesame"  # noqa: S105 - the sample's own, written in README.md


def _encrypted(pdf: bytes) -> bytes:
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf)) as doc:
        # R3 on purpose: later revisions mix random salts in, and the file would change with every run.
        lock = pikepdf.Encryption(
            user=PASSWORD, owner=PASSWORD, R=3, allow=pikepdf.Permissions(), aes=False, metadata=False
        )
        doc.save(out, encryption=lock, static_id=True)
    return out.getvalue()


def _many_pages() -> bytes:
    out = io.BytesIO()
    with pikepdf.new() as doc:
        font = doc.make_indirect(
            pikepdf.Dictionary(Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica)
        )
        for number in range(1, MANY_PAGES + 1):
            page = doc.add_blank_page(page_size=(595, 842))
            page.Resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(F1=font))
            page.Contents = doc.make_stream(f"BT /F1 24 Tf 72 740 Td (Page {number}) Tj ET".encode())
        doc.save(out, static_id=True, object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return out.getvalue()


def _bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (BOMB_SIDE, BOMB_SIDE), 1).save(out, "PNG", optimize=True)
    return out.getvalue()


def bad_files(typed: bytes, scanned: Image.Image) -> dict[str, bytes]:
    """Name to bytes; ``typed`` and ``scanned`` lend the content of those that are nearly right."""
    picture = io.BytesIO()
    scanned.resize((620, 877), Image.Resampling.LANCZOS).save(picture, "JPEG", quality=45)
    return {
        "not_an_image.png": b"This file is called .png and holds nothing but this sentence.\n",
        "empty.pdf": b"",
        "truncated.pdf": typed[: len(typed) // 2],
        "encrypted.pdf": _encrypted(typed),
        f"bomb_{BOMB_SIDE}.png": _bomb(),
        f"pages_{MANY_PAGES}.pdf": _many_pages(),
        "mislabelled.pdf": picture.getvalue(),
    }
