"""What comes of each kind of file, sound and hostile, through real reading processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image

from services.ocr_worker.engine import DocumentError, ReaderPool
from services.ocr_worker.engine.errors import MESSAGES
from shared.contracts import Page

from . import drawing

pytestmark = pytest.mark.slow

PDF = "application/pdf"


def read(reader_pool: ReaderPool, path: Path, media_type: str, tmp_path: Path) -> list[Page]:
    pages = reader_pool.inspect(path, media_type, 200).result(60).pages
    waiting = [reader_pool.read_page(path, media_type, n, tmp_path / f"{n}.out.jpg") for n in range(1, pages + 1)]
    return [pending.result(60) for pending in waiting]


def assert_reads(page: Page) -> None:
    text = page.text.lower().replace(" ", "")
    assert "adalovelace" in text
    assert "mitochondrion" in text


def test_a_png_is_read_with_words_in_their_places(reader_pool: ReaderPool, tmp_path: Path) -> None:
    (page,) = read(reader_pool, drawing.save(drawing.page(), tmp_path / "a.png"), "image/png", tmp_path)
    assert_reads(page)
    assert (page.source, page.rotation, page.width, page.height) == ("ocr", 0, 900, 420)
    assert page.confidence > 0.8
    tops = [line.box[1] for line in page.lines]
    assert tops == sorted(tops)
    water = next(line for line in page.lines if line.text.lower().startswith("water"))
    assert 55 < water.words[0].box[0] < 75
    assert 285 < water.words[0].box[1] < 310
    for word in (word for line in page.lines for word in line.words):
        assert 0 <= word.box[0] < word.box[2] <= page.width
        assert 0 <= word.box[1] < word.box[3] <= page.height


def test_the_page_image_is_upright_and_bare_of_metadata(reader_pool: ReaderPool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    exif[0x010F] = "a camera"
    turned = drawing.page().transpose(Image.Transpose.ROTATE_90)
    (page,) = read(reader_pool, drawing.save(turned, tmp_path / "a.jpg", exif=exif), "image/jpeg", tmp_path)
    assert_reads(page)
    assert page.rotation == 0
    with Image.open(tmp_path / "1.out.jpg") as image:
        assert image.size == (page.width, page.height) == (900, 420)
        assert not image.getexif()


@pytest.mark.parametrize(
    ("turn", "rotation"),
    [(Image.Transpose.ROTATE_180, 180), (Image.Transpose.ROTATE_90, 90), (Image.Transpose.ROTATE_270, 270)],
)
def test_a_turned_page_is_turned_back(
    reader_pool: ReaderPool, tmp_path: Path, turn: Image.Transpose, rotation: int
) -> None:
    (page,) = read(reader_pool, drawing.save(drawing.page().transpose(turn), tmp_path / "a.png"), "image/png", tmp_path)
    assert_reads(page)
    assert page.rotation == rotation
    assert (page.width, page.height) == (900, 420)


def test_every_page_of_a_tiff(reader_pool: ReaderPool, tmp_path: Path) -> None:
    images = [drawing.page((f"Page number {word}",)) for word in ("one", "two", "three")]
    path = drawing.save(images[0], tmp_path / "a.tiff", save_all=True, append_images=images[1:])
    pages = read(reader_pool, path, "image/tiff", tmp_path)
    assert [page.text.split()[-1].lower() for page in pages] == ["one", "two", "three"]


def test_heic_and_webp_and_transparent_png(reader_pool: ReaderPool, tmp_path: Path) -> None:
    heic = tmp_path / "a.heic"
    pillow_heif.from_pillow(drawing.page()).save(heic, quality=80)
    clear = Image.new("RGBA", (900, 420), (0, 0, 0, 0))
    ink = drawing.page().convert("L").point(lambda level: 255 - level)
    clear.paste((0, 0, 0, 255), mask=ink)
    for path, media_type in (
        (heic, "image/heic"),
        (drawing.save(drawing.page(), tmp_path / "a.webp"), "image/webp"),
        (drawing.save(clear, tmp_path / "clear.png"), "image/png"),
    ):
        (page,) = read(reader_pool, path, media_type, tmp_path)
        assert_reads(page)


def test_a_text_layer_is_taken_as_it_is(reader_pool: ReaderPool, tmp_path: Path) -> None:
    (page,) = read(reader_pool, drawing.text_pdf(tmp_path / "a.pdf"), PDF, tmp_path)
    assert (page.source, page.confidence) == ("text_layer", 1.0)
    assert page.text == "Name: Grace Hopper wrote the first compiler in 1952"
    # 60 pt and 842 - 760 pt at 200 dpi; the loose box is about an ascent high.
    x0, y0, _, y1 = page.lines[0].words[0].box
    assert x0 == pytest.approx(60 * 200 / 72, abs=4)
    assert y0 < (842 - 760) * 200 / 72 < y1 + 4


def test_ink_over_a_text_layer_is_read_from_the_image(reader_pool: ReaderPool, tmp_path: Path) -> None:
    (page,) = read(reader_pool, drawing.annotated_pdf(tmp_path / "a.pdf"), PDF, tmp_path)
    assert page.source == "ocr"
    assert "grace" in page.text.lower()


def test_a_text_layer_too_thin_to_trust_is_read_from_the_image(reader_pool: ReaderPool, tmp_path: Path) -> None:
    (page,) = read(reader_pool, drawing.text_pdf(tmp_path / "a.pdf", text="Page one"), PDF, tmp_path)
    assert page.source == "ocr"


def test_a_scanned_pdf_and_a_blank_page(reader_pool: ReaderPool, tmp_path: Path) -> None:
    path = drawing.scanned_pdf(tmp_path / "a.pdf", [drawing.page(), Image.new("RGB", (900, 420), "white")])
    first, second = read(reader_pool, path, PDF, tmp_path)
    assert_reads(first)
    assert (second.source, second.lines, second.confidence) == ("blank", (), 0.0)


def test_content_decides_not_the_declared_type(reader_pool: ReaderPool, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(drawing.jpeg_bytes(drawing.page()))
    (page,) = read(reader_pool, path, PDF, tmp_path)
    assert_reads(page)


def test_a_pdf_with_a_jpeg_behind_its_header_is_refused(reader_pool: ReaderPool, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4\n" + drawing.jpeg_bytes(drawing.page()))
    assert refusal(reader_pool, path, PDF) == "document.not_readable"


def test_a_huge_photo_is_shrunk_not_refused(reader_pool: ReaderPool, tmp_path: Path) -> None:
    photo = drawing.page(size=(900, 600)).resize((9000, 6000))
    (page,) = read(reader_pool, drawing.save(photo, tmp_path / "a.jpg"), "image/jpeg", tmp_path)
    assert max(page.width, page.height) == 3000
    assert_reads(page)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _sentence(path: Path) -> None:
    path.write_text("This is no picture.")


def _bomb(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path, "PNG")


def _bigger_bomb(path: Path) -> None:
    Image.new("1", (30000, 30000)).save(path, "PNG")


def _cut_png(path: Path) -> None:
    drawing.save(drawing.page(), path, format="PNG")
    path.write_bytes(path.read_bytes()[:3000])


def _cut_pdf(path: Path) -> None:
    drawing.text_pdf(path)
    path.write_bytes(path.read_bytes()[:120])


def _header_only(path: Path) -> None:
    path.write_bytes(b"%PDF-1.7\n%%EOF\n")


def _no_pages(path: Path) -> None:
    drawing.text_pdf(path, pages=0)


def _many_pages(path: Path) -> None:
    drawing.text_pdf(path, pages=300)


def _many_frames(path: Path) -> None:
    frame = Image.new("1", (8, 8))
    frame.save(path, "TIFF", save_all=True, append_images=[frame] * 250)


def _locked(path: Path) -> None:
    drawing.encrypted_pdf(path)


@pytest.mark.parametrize(
    ("make", "media_type", "code"),
    [
        (_empty, PDF, "document.empty"),
        (_sentence, "image/png", "document.not_readable"),
        (_sentence, "text/plain", "document.unsupported"),
        (_bomb, "image/png", "document.too_large"),
        (_bigger_bomb, "image/png", "document.too_large"),
        (_cut_png, "image/png", "document.not_readable"),
        (_cut_pdf, PDF, "document.not_readable"),
        (_header_only, PDF, "document.not_readable"),
        (_no_pages, PDF, "document.not_readable"),
        (_many_pages, PDF, "document.too_many_pages"),
        (_many_frames, "image/tiff", "document.too_many_pages"),
        (_locked, PDF, "document.encrypted"),
    ],
)
def test_a_bad_file_is_refused_with_what_to_do(
    reader_pool: ReaderPool, tmp_path: Path, make: Callable[[Path], None], media_type: str, code: str
) -> None:
    path = tmp_path / "file"
    make(path)
    assert refusal(reader_pool, path, media_type) == code


def refusal(reader_pool: ReaderPool, path: Path, media_type: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(reader_pool, path, media_type, path.parent)
    assert caught.value.message == MESSAGES[caught.value.code]
    return caught.value.code
