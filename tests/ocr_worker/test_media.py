from __future__ import annotations

import pytest

from shared.media import ACCEPTED, EXTENSIONS, SNIFF_BYTES, from_extension, sniff


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"%PDF-1.7\n", "application/pdf"),
        (b"\x00" * 1024 + b"%PDF-1.7\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"II*\x00\x08\x00\x00\x00", "image/tiff"),
        (b"MM\x00*\x00\x00\x00\x08", "image/tiff"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "image/heic"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "image/heic"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1avif", None),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00isommp42", None),
        (b"\x00" * 1030 + b"%PDF-1.7\n", None),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", None),
        (b"GIF89a", None),
        (b"<svg xmlns=", None),
        (b"PK\x03\x04", None),
        (b"", None),
        (b"\x00\x00\x00", None),
    ],
)
def test_type_is_told_by_the_first_bytes(head: bytes, expected: str | None) -> None:
    assert sniff(head[:SNIFF_BYTES]) == expected


def test_every_accepted_type_has_an_extension_that_leads_back_to_it() -> None:
    for media_type in ACCEPTED:
        for extension in EXTENSIONS[media_type]:
            assert from_extension(f"Scan.{extension.upper()}") == media_type
    assert from_extension("letter.docx") is None
    assert from_extension("pdf") == "application/pdf"
    assert from_extension("") is None
