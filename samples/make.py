"""Writes every sample beside this file: ``python samples/make.py --fonts FOLDER`` (see README.md).

Seeded throughout: with the same package versions a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pikepdf
from bad import bad_files
from content import SHEETS, Sheet
from optics import SCAN_DPI, Shot, photograph, scan
from pen import Fonts, Hand
from PIL import Image
from sheet import SheetPage, pages
from typed import typed_pdf

HERE = Path(__file__).resolve().parent
SEED = 20250314

# (file, page, turned by the EXIF tag, how it was taken)
SHOTS: tuple[tuple[str, int, bool, Shot], ...] = (
    (
        "page1_exif_rotated.jpg",
        1,
        True,
        Shot(((0.075, 0.052), (0.938, 0.060), (0.946, 0.955), (0.058, 0.949)), (0.97, 1.0, 1.0), bow=0.006),
    ),
    (
        "page2_shadow_perspective.jpg",
        2,
        False,
        Shot(
            ((0.165, 0.085), (0.862, 0.062), (0.968, 0.925), (0.040, 0.968)),
            (0.74, 0.97, 1.10),
            bow=0.013,
            shadow=((1.1, 0.34), (0.84, 0.39), (0.62, 0.48), (0.45, 0.62), (0.19, 0.78), (0.10, 1.1), (1.1, 1.1)),
            falloff=0.26,
            grain=3.4,
        ),
    ),
    (
        "page3_skewed.jpg",
        3,
        False,
        Shot(((0.120, 0.048), (0.962, 0.098), (0.902, 0.958), (0.038, 0.900)), (0.90, 0.99, 1.0), bow=0.008, blur=0.85),
    ),
)


def scan_pdf(images: list[Image.Image]) -> bytes:
    """The pages as an office scanner writes them: one JPEG a page, no text layer."""
    out = io.BytesIO()
    with pikepdf.new() as doc:
        for image in images:
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=66, dpi=(SCAN_DPI, SCAN_DPI))
            size = (image.width * 72 / SCAN_DPI, image.height * 72 / SCAN_DPI)
            page = doc.add_blank_page(page_size=size)
            picture = doc.make_stream(
                jpeg.getvalue(),
                Type=pikepdf.Name.XObject,
                Subtype=pikepdf.Name.Image,
                Width=image.width,
                Height=image.height,
                ColorSpace=pikepdf.Name.DeviceGray,
                BitsPerComponent=8,
                Filter=pikepdf.Name.DCTDecode,
            )
            page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Scan=picture))
            page.Contents = doc.make_stream(f"q {size[0]:.3f} 0 0 {size[1]:.3f} 0 0 cm /Scan Do Q".encode())
        doc.save(out, static_id=True)
    return out.getvalue()


def photo_jpeg(picture: Any, turned: bool) -> bytes:
    """JPEG with the tags a phone sets; ``turned``: stored lying on its side, orientation 6 says how to right it."""
    image = Image.fromarray(np.ascontiguousarray(picture[..., ::-1]))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    exif[0x0132] = "2025:03:14 15:42:07"
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=78, exif=exif)
    return out.getvalue()


def standard(sheet: Sheet) -> dict[str, Any]:
    """The body of ``POST /standards``."""
    return {"name": sheet.quiz.title, "key": sheet.quiz.key}


def expected(sheet: Sheet, files: list[str]) -> dict[str, Any]:
    """What a careful teacher reads off the sheet and gives for it."""
    return {
        "files": files,
        "student_name": sheet.name,
        "school": sheet.school,
        "grade_level": sheet.grade_level,
        "class": sheet.class_name,
        "date": sheet.date,
        "questions": [
            {
                "id": q["id"],
                "page": sheet.quiz.page_of(q["id"]),
                "given": sheet.given[q["id"]].text,
                "points": sheet.given[q["id"]].points,
                "max_points": q["points"],
            }
            for q in sheet.quiz.key["questions"]
        ],
        "points": sum(a.points for a in sheet.given.values()),
        "max_points": sheet.quiz.max_points,
    }


def drawn(sheet: Sheet, fonts: Fonts, family: str, size: int, rng: np.random.Generator) -> list[SheetPage]:
    return list(pages(sheet, fonts, Hand(fonts, family, size, rng, stroke=1), rng))


def write(name: str, content: bytes | dict[str, Any]) -> None:
    if isinstance(content, bytes):
        data = content
    else:
        data = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    print(f"{len(data):>9}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fonts", type=Path, required=True, help="folder with the npm tarballs README.md names")
    fonts = Fonts(parser.parse_args().fonts)

    rng = np.random.default_rng(SEED)
    sheets = drawn(SHEETS["quiz"], fonts, "caveat", 150, rng)
    scans = [
        Image.fromarray(scan(page, behind, skew, rng))
        for page, behind, skew in zip(sheets, [*sheets[1:], None], (0.55, -0.8, 1.15), strict=True)
    ]
    write("quiz/quiz_scan.pdf", scan_pdf(scans))

    rng = np.random.default_rng(SEED + 1)
    sheets = drawn(SHEETS["photos"], fonts, "indie-flower", 124, rng)
    for name, page, turned, shot in SHOTS:
        write(f"photos/{name}", photo_jpeg(photograph(sheets[page - 1], shot, rng), turned))

    homework = typed_pdf(SHEETS["typed"], fonts)
    write("typed/homework.pdf", homework)

    files = {"quiz": ["quiz_scan.pdf"], "photos": [name for name, *_ in SHOTS], "typed": ["homework.pdf"]}
    for folder, sheet in SHEETS.items():
        write(f"{folder}/standard.json", standard(sheet))
        write(f"{folder}/expected.json", expected(sheet, files[folder]))
    for name, data in bad_files(homework, scans[0]).items():
        write(f"bad/{name}", data)


if __name__ == "__main__":
    main()
