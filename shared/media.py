"""File types Gradeline accepts, told by their first bytes: a name or a declared type proves nothing."""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["ACCEPTED", "EXTENSIONS", "SNIFF_BYTES", "MediaType", "from_extension", "sniff"]

MediaType = Literal["application/pdf", "image/png", "image/jpeg", "image/webp", "image/tiff", "image/heic"]

# ISO 32000 readers accept the header anywhere in the first 1024 bytes.
SNIFF_BYTES: Final = 1024 + len(b"%PDF-")

# The first extension of each is the one we write.
EXTENSIONS: Final[dict[MediaType, tuple[str, ...]]] = {
    "application/pdf": ("pdf",),
    "image/png": ("png",),
    "image/jpeg": ("jpg", "jpeg", "jpe", "jfif"),
    "image/webp": ("webp",),
    "image/tiff": ("tif", "tiff"),
    "image/heic": ("heic", "heif", "hif"),
}
ACCEPTED: Final[frozenset[MediaType]] = frozenset(EXTENSIONS)

# Brands of still HEVC images (ISO 23008-12) and the general HEIF brand. AVIF is not among them: we cannot read it.
_HEIC_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_MAX_FTYP: Final = 256


def sniff(head: bytes) -> MediaType | None:
    """The type of a file that begins with ``head`` (give ``SNIFF_BYTES`` of it), or None when it is none of ours."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    # Classic TIFF and BigTIFF, either byte order.
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "image/tiff"
    if head[4:8] == b"ftyp":
        return "image/heic" if _is_heic(head) else None
    if b"%PDF-" in head[:SNIFF_BYTES]:
        return "application/pdf"
    return None


def from_extension(name: str) -> MediaType | None:
    """The type that a file name claims, whatever its case; None when it claims none of ours."""
    extension = name.rpartition(".")[2].lower()
    return next((media_type for media_type, known in EXTENSIONS.items() if extension in known), None)


def _is_heic(head: bytes) -> bool:
    size = min(int.from_bytes(head[:4], "big"), _MAX_FTYP, len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    return not brands & {b"avif", b"avis"} and bool(brands & _HEIC_BRANDS)
