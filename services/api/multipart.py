"""Streaming a multipart upload to disk: every file counted, hashed and typed while it passes, none held in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
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
from shared.storage import leftovers

from .errors import Problem
from .wording import MAX_NAME

__all__ = ["SPOOL_PREFIX", "Form", "UploadedFile", "receive", "sweep"]

SPOOL_PREFIX = ".upload-"
# Beyond the time that an upload may take: accepting it takes seconds at most.
_SPARE_SECONDS = 600.0
_CHUNK = 64 * 1024
# Bytes gathered before a thread writes and hashes them: about a millisecond of its work.
_FLUSH = 1024 * 1024
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
    """The form, its files whole in a temporary folder that goes when the block ends. Raises Problem 4xx.

    The event loop is never held for the disk: writing, hashing and deleting happen on threads.
    """
    _check_head(req, settings)
    folder = _spool(settings)
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool = await asyncio.to_thread(tempfile.mkdtemp, prefix=SPOOL_PREFIX, dir=folder)
    try:
        try:
            form = await _read(req, settings, Path(spool))
        except (falcon.media.multipart.MultipartParseError, falcon.MediaMalformedError) as e:
            raise _malformed(e.description or e.title or "unreadable") from None
        yield form
    finally:
        await asyncio.to_thread(shutil.rmtree, spool, ignore_errors=True)


def sweep(settings: Settings) -> None:
    """Delete what processes that were killed had half received."""
    folder = _spool(settings) or Path(tempfile.gettempdir())
    leftovers.sweep(folder, SPOOL_PREFIX, older_than=settings.upload_seconds + _SPARE_SECONDS)


def _spool(settings: Settings) -> Path | None:
    """In the storage folder, so that a local store can rename instead of copying; None: the system's own place."""
    return settings.storage_dir if settings.s3_bucket is None else None


def _check_head(req: falcon.asgi.Request, settings: Settings) -> None:
    media_type, _, parameters = (req.content_type or "").partition(";")
    if media_type.strip().lower() != "multipart/form-data":
        raise Problem(
            415,
            "request.unsupported_type",
            "Send the files as multipart/form-data, in fields named files.",
            param="Content-Type",
        )
    try:
        boundary = falcon.parse_header(f"form-data;{parameters}")[1].get("boundary", "").rstrip()
        sound = 1 <= len(boundary.encode("ascii")) <= 70
    except UnicodeEncodeError:
        sound = False
    if not sound:
        raise Problem(
            400,
            "upload.malformed",
            "The Content-Type header needs a boundary of 1 to 70 characters. Leave the header to the browser or the "
            "HTTP library: it writes the right one.",
            param="Content-Type",
        )
    limit = settings.max_files * (settings.max_file_bytes + 4096) + 64 * 1024
    if req.content_length is not None and req.content_length > limit:
        raise Problem(
            413, "upload.too_large", f"One request may have at most {_size(limit)}. Send fewer files.", param="files"
        )


def _malformed(why: str) -> Problem:
    return Problem(400, "upload.malformed", f"The form is not valid multipart/form-data: {why}.")


async def _read(req: falcon.asgi.Request, settings: Settings, folder: Path) -> Form:
    form = Form()
    async for part in await req.get_media():
        name, file_name = _names(part)
        if name in _FILE_FIELDS:
            if len(form.files) >= settings.max_files:
                raise Problem(
                    413,
                    "upload.too_many_files",
                    f"One request may have at most {settings.max_files} files. Send the others in another.",
                    param="files",
                )
            file = await _file(part, file_name, settings, folder / str(len(form.files)))
            if file is not None:
                form.files.append(file)
        elif name in form.fields:
            raise Problem(422, "request.invalid", f"{name[:MAX_NAME]} is there twice.", param=name[:MAX_NAME])
        else:
            form.fields[name] = await _field(part, name[:MAX_NAME])
    return form


def _names(part: falcon.asgi.multipart.BodyPart) -> tuple[str, str | None]:
    """The names of the field and of the file. Raises Problem where there is none, or it is not UTF-8."""
    try:
        name, file_name = part.name, part.filename
    except UnicodeDecodeError:
        raise _malformed("the name of a field or of a file is not UTF-8 text") from None
    if not name:
        raise _malformed("a part has no name (Content-Disposition: form-data; name=…)")
    return name, file_name


async def _field(part: falcon.asgi.multipart.BodyPart, name: str) -> str:
    value: bytes = await part.stream.read(_MAX_FIELD_BYTES + 1)
    if len(value) > _MAX_FIELD_BYTES:
        raise Problem(422, "request.invalid", f"{name} is longer than {_MAX_FIELD_BYTES} bytes.", param=name)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise Problem(422, "request.invalid", f"{name} is not UTF-8 text.", param=name) from None
    if "\x00" in text:
        raise Problem(422, "request.invalid", f"{name} holds a NUL character. Remove it.", param=name)
    return text


async def _file(
    part: falcon.asgi.multipart.BodyPart, file_name: str | None, settings: Settings, path: Path
) -> UploadedFile | None:
    """The file, on disk; None for the empty part that a browser sends where no file was chosen."""
    name = _display_name(file_name)
    hashed = hashlib.sha256()
    size = 0
    head = b""
    waiting = bytearray()
    with path.open("wb", buffering=0) as out:

        def keep(data: bytes) -> None:
            hashed.update(data)
            out.write(data)

        while chunk := await part.stream.read(_CHUNK):
            size += len(chunk)
            if size > settings.max_file_bytes:
                raise Problem(
                    413,
                    "upload.file_too_large",
                    f"{name} is larger than the {_size(settings.max_file_bytes)} that a file may have.",
                    param="files",
                )
            if len(head) < SNIFF_BYTES:
                head += chunk[: SNIFF_BYTES - len(head)]
            waiting += chunk
            if len(waiting) >= _FLUSH:
                await asyncio.to_thread(keep, bytes(waiting))
                waiting.clear()
        if waiting:
            await asyncio.to_thread(keep, bytes(waiting))
    if size == 0:
        if not file_name:
            return None
        raise Problem(422, "upload.empty_file", f"{name} is empty. Choose the file again.", param="files")
    media_type = sniff(head)
    if media_type is None:
        raise Problem(
            415,
            "upload.unsupported_file",
            f"{name} is not a PDF or a picture (JPEG, PNG, WebP, TIFF, HEIC) that can be read.",
            param="files",
        )
    _agree(name, part, media_type)
    return UploadedFile(name, path, size, hashed.digest(), media_type)


def _size(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((1024**3, "GB"), (1024**2, "MB"), (1024, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


# What browsers send when they do not know.
_UNDECLARED = {"", "application/octet-stream", "text/plain"}
_SAME = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/heif": "image/heic",
    "application/x-pdf": "application/pdf",
}


def _agree(name: str, part: falcon.asgi.multipart.BodyPart, actual: MediaType) -> None:
    """The declared type and the content must say the same: a file that lies about itself is refused."""
    try:
        said = part.content_type.partition(";")[0].strip().lower()
    except UnicodeDecodeError:
        said = "something unreadable"
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
    return clean[:200].strip() or "unnamed file"
