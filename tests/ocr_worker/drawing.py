"""Documents that the tests draw for themselves: sound ones and hostile ones."""

from __future__ import annotations

import io
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as raw
from PIL import Image, ImageDraw, ImageFont

LINES = ("Name: Ada Lovelace", "School: Analytical Academy", "The mitochondrion makes energy", "Water boils at 100")


def page(lines: tuple[str, ...] = LINES, size: tuple[int, int] = (900, 420)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(34)
    for index, line in enumerate(lines):
        draw.text((60, 50 + 80 * index), line, fill="black", font=font)
    return image


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def text_pdf(path: Path, pages: int = 1, text: str = "Name: Grace Hopper wrote the first compiler in 1952") -> Path:
    """A PDF with a real text layer, by hand: small and without a library."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(pages))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for _ in range(pages):
        number = len(objects) + 2
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >>"
            + f" /Contents {number} 0 R >>".encode()
        )
        stream = f"BT /F1 18 Tf 60 760 Td ({text}) Tj ET".encode()
        objects.append(f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream")
    return _write_pdf(path, objects)


def encrypted_pdf(path: Path) -> Path:
    """A PDF that asks for a user password (RC4, 40 bit): the keys need not be right to be asked for."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] >>",
        b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>",
    ]
    return _write_pdf(path, objects, trailer=b"/Encrypt 4 0 R /ID [<00><00>] ")


def scanned_pdf(path: Path, images: list[Image.Image]) -> Path:
    images[0].save(path, "PDF", resolution=150, save_all=True, append_images=images[1:])
    return path


def annotated_pdf(path: Path) -> Path:
    """A text layer with ink drawn over it, as a tablet does."""
    document = pdfium.PdfDocument(text_pdf(path.with_suffix(".plain.pdf")))
    first = document[0]
    annotation = raw.FPDFPage_CreateAnnot(first, raw.FPDF_ANNOT_INK)
    raw.FPDFPage_CloseAnnot(annotation)
    document.save(path)
    document.close()
    return path


def jpeg_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def _write_pdf(path: Path, objects: list[bytes], trailer: bytes = b"") -> Path:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for index, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{index} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    for offset in offsets:
        out += f"{offset:010d} 00000 n \n".encode()
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R ".encode() + trailer
    out += f">>\nstartxref\n{start}\n%%EOF\n".encode()
    path.write_bytes(out)
    return path
