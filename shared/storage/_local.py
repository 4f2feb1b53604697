"""Objects as files under one folder, for one machine (or a shared mount)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ._errors import InvalidKey, ObjectMissing, ObjectTooLarge, StorageUnavailable
from ._files import open_regular
from ._keys import check_key
from ._protocol import ObjectStat

__all__ = ["LocalStorage"]

_INCOMING = ".incoming"  # no key can start with a dot, so no object is ever in here
_STALE_SECONDS = 3600.0  # an upload takes minutes at most: older leftovers belong to a process that died
_PUBLISH_ATTEMPTS = 50  # each lost only to a delete of the folder's last object in the same microseconds


class LocalStorage:
    """Files are 0600 in folders of 0700, fsynced before they get their name; the name is given by one rename.

    The root is made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(root).absolute()
        self._swept = False

    def put_file(self, key: str, path: Path, media_type: str, *, consume: bool = False) -> None:
        target = self._path(key)
        with _os_errors():
            if consume:
                try:
                    _make_private(path)
                    self._publish(path, target)
                    _sync_folder(path.parent)
                    return
                except OSError as e:
                    if e.errno != errno.EXDEV:  # another file system: copy after all
                        raise
            with open_regular(path) as source:
                self._write(target, source)
            if consume:
                path.unlink()

    def put_bytes(self, key: str, data: bytes, media_type: str) -> None:
        target = self._path(key)
        with _os_errors():
            self._write(target, data)

    @contextmanager
    def open_local(self, key: str) -> Iterator[Path]:
        self.stat(key)
        # Outside of the error mapping: what the caller's block raises is the caller's.
        yield self._path(key)

    def read(self, key: str, limit: int) -> bytes:
        path = self._path(key)
        with _os_errors(key), path.open("rb") as f:
            data = f.read(limit + 1)
        if len(data) > limit:
            raise ObjectTooLarge(key, limit)
        return data

    def stat(self, key: str) -> ObjectStat:
        path = self._path(key)
        with _os_errors(key):
            s = path.stat()
            if not path.is_file():
                raise ObjectMissing(key)
        return ObjectStat(key, s.st_size, datetime.fromtimestamp(s.st_mtime, UTC))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissing:
            return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        for path in [self._path(k) for k in keys]:
            with _os_errors():
                try:
                    path.unlink()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                _sync_folder(path.parent)
                # Empty folders go too. A writer that loses its folder to this makes it again (_publish).
                for folder in path.parents:
                    if folder == self._root:
                        break
                    try:
                        folder.rmdir()
                    except OSError:
                        break

    def walk(self, folder: str) -> Iterator[ObjectStat]:
        check_key(folder)
        with _os_errors():
            try:
                with os.scandir(self._root / folder) as entries:
                    names = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
            except (FileNotFoundError, NotADirectoryError):
                return
        for name, is_folder in names:
            try:
                key = check_key(f"{folder}/{name}")
                found = None if is_folder else self.stat(key)
            except (InvalidKey, ObjectMissing):  # no object of ours; deleted meanwhile
                continue
            if found is None:
                yield from self.walk(key)
            else:
                yield found

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _write(self, target: Path, source: BinaryIO | bytes) -> None:
        incoming = self._root / _INCOMING
        # Root first: mkdir gives the parents it makes on the way the umask's mode, not ours.
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        incoming.mkdir(mode=0o700, exist_ok=True)
        self._sweep(incoming)
        temporary = incoming / uuid4().hex
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as f:
                if isinstance(source, bytes):
                    f.write(source)
                else:
                    shutil.copyfileobj(source, f, 1024 * 1024)
                f.flush()
                os.fsync(f.fileno())
            self._publish(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def _publish(self, ready: Path, target: Path) -> None:
        """Rename the synced file ``ready`` to ``target``, and make the new name durable."""
        for attempt in range(_PUBLISH_ATTEMPTS):
            new = [
                p for p in (target.parent, *target.parent.parents) if p.is_relative_to(self._root) and not p.exists()
            ]
            try:
                for folder in reversed(new):
                    folder.mkdir(mode=0o700, parents=folder == self._root, exist_ok=True)
                os.replace(ready, target)
            except (FileNotFoundError, FileExistsError):
                # A delete pruned the folder between two calls (FileExistsError: within mkdir, which looks twice).
                if attempt == _PUBLISH_ATTEMPTS - 1 or not ready.exists():
                    raise
            else:
                for folder in (target.parent, *(p.parent for p in new)):
                    _sync_folder(folder)
                return

    def _sweep(self, incoming: Path) -> None:
        """Once a process: remove what earlier processes left half-written when they died."""
        if self._swept:
            return
        self._swept = True
        for leftover in incoming.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()


def _make_private(path: Path) -> None:
    """Bytes of ``path`` onto the disk, readable by this user alone."""
    with open_regular(path) as f:
        os.fchmod(f.fileno(), 0o600)
        os.fsync(f.fileno())


def _sync_folder(path: Path) -> None:
    with suppress(FileNotFoundError):  # pruned meanwhile: nothing left to make durable
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def _os_errors(key: str | None = None) -> Iterator[None]:
    """OSError as this package's errors; an absent file is ObjectMissing only where ``key`` is what was looked for."""
    try:
        yield
    except OSError as e:
        if key is not None and isinstance(e, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise ObjectMissing(key) from None
        # strerror alone: the text of an OSError repeats the path.
        raise StorageUnavailable(f"the storage folder refused: {e.strerror or type(e).__name__}") from e
