"""Streaming a multipart upload to disk: every file counted, hashed and typed while it passes, none held in memory."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import falcon
import falcon.asgi
import falcon.media.multipart

from shared.media import SNIFF_BYTES, MediaType, sniff
from shared.settings import Settings

from .errors import Problem

__all__ = ["Form", "UploadedFile", "receive"]

_CHUNK = 64 * 1024
_MAX_FIELD_BYTES = 4096
_FILE_FIELDS = {"files", "files[]", "file"}


@dataclass(slots=True)
class UploadedFile:
    """A file on disk, whole: its name as the client gave it, cleaned for display; its type by content."""

    name: str
    path: Path
    size: int
    sha256: bytes
    media_type: MediaType


@dataclass(slots=True)
class Form:
    files: list[UploadedFile] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def receive(req: falcon.asgi.Request, settings: Settings) -> AsyncIterator[Form]:
    """The form, its files in a temporary folder that goes when the block ends. Raises Problem 4xx."""
    if (req.content_type or "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Problem(
            415,
            "request.unsupported_type",
            "Send the files as multipart/form-data, in fields named files.",
            param="Content-Type",
        )
    limit = settings.max_files * (settings.max_file_bytes + 4096) + 64 * 1024
    if req.content_length is not None and req.content_length > limit:
        raise Problem(413, "upload.too_large", f"A request may have at most {limit} bytes.", param="files")
    folder = None
    if settings.s3_bucket is None:
        # In the storage folder, so that a local store can rename instead of copying.
        settings.storage_dir.mkdir(parents=True, exist_ok=True)
        folder = settings.storage_dir
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder) as spool:
        try:
            yield await _read(req, settings, Path(spool))
        except (falcon.media.multipart.MultipartParseError, falcon.MediaMalformedError) as e:
            raise Problem(
                400, "upload.malformed", f"The form is not valid multipart/form-data: {e.description or e.title}."
            ) from None


async def _read(req: falcon.asgi.Request, settings: Settings, folder: Path) -> Form:
    form = Form()
    async for part in await req.get_media():
        name = part.name or ""
        if name in _FILE_FIELDS:
            if len(form.files) >= settings.max_files:
                raise Problem(
                    413, "upload.too_many_files", f"At most {settings.max_files} files in one request.", param="files"
                )
            form.files.append(await _file(part, settings, folder / str(len(form.files))))
        elif name in form.fields:
            raise Problem(422, "request.invalid", f"{name[:64]} is there twice.", param=name[:64])
        else:
            form.fields[name] = await _field(part)
    return form


async def _field(part: falcon.asgi.multipart.BodyPart) -> str:
    value: bytes = await part.stream.read(_MAX_FIELD_BYTES + 1)
    if len(value) > _MAX_FIELD_BYTES:
        raise Problem(422, "request.invalid", f"{part.name} is longer than {_MAX_FIELD_BYTES} bytes.", param=part.name)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Problem(422, "request.invalid", f"{part.name} is not UTF-8 text.", param=part.name) from None


async def _file(part: falcon.asgi.multipart.BodyPart, settings: Settings, path: Path) -> UploadedFile:
    name = _display_name(part.filename)
    hashed = hashlib.sha256()
    size = 0
    head = b""
    with path.open("wb") as out:
        while chunk := await part.stream.read(_CHUNK):
            size += len(chunk)
            if size > settings.max_file_bytes:
                raise Problem(
                    413,
                    "upload.file_too_large",
                    f"{name} is larger than the {settings.max_file_bytes // 1024**2} MB that a file may have.",
                    param="files",
                )
            if len(head) < SNIFF_BYTES:
                head += chunk[: SNIFF_BYTES - len(head)]
            hashed.update(chunk)
            out.write(chunk)
    if size == 0:
        raise Problem(422, "upload.empty_file", f"{name} is empty. Choose the file again.", param="files")
    media_type = sniff(head)
    if media_type is None:
        raise Problem(
            415,
            "upload.unsupported_file",
            f"{name} is not a PDF or a picture (JPEG, PNG, WebP, TIFF, HEIC) that can be read.",
            param="files",
        )
    _agree(name, part.content_type, media_type)
    return UploadedFile(name, path, size, hashed.digest(), media_type)


# What browsers send when they do not know.
_UNDECLARED = {"", "application/octet-stream", "text/plain"}
_SAME = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/heif": "image/heic",
    "application/x-pdf": "application/pdf",
}


def _agree(name: str, declared: str | None, actual: MediaType) -> None:
    """The declared type and the content must say the same: a file that lies about itself is refused."""
    said = (declared or "").partition(";")[0].strip().lower()
    if said in _UNDECLARED:
        return
    if _SAME.get(said, said) != _SAME.get(str(actual), str(actual)):
        raise Problem(
            415,
            "upload.type_mismatch",
            f"{name} was sent as {said[:100]}, but its content is {actual}. Send it with the right Content-Type.",
            param="files",
        )


def _display_name(text: str | None) -> str:
    """A name fit for showing: the last path part, without control or direction-changing characters."""
    last = (text or "").replace("\\", "/").rpartition("/")[2]
    clean = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] != "C").strip()
    return clean[:200] or "unnamed file"
