"""Where Postgres may live when we are root: which account it runs as, and folders which that account can reach."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Account", "copy_of_binaries", "reachable", "sibling_folder", "unprivileged_account"]

_OUTSIDE = Path("/var/tmp")  # noqa: S108 - survives a reboot, open to every account; see _own_folder


@dataclass(frozen=True, slots=True)
class Account:
    uid: int
    gid: int


def unprivileged_account(existing: Path) -> Account | None:
    """The account that must own and run a data folder: None (ourselves) unless we are root.

    A data folder that exists keeps its owner, so a stack begun by a user can be continued by root. Otherwise
    ``nobody``: initdb insists on an account with a name. Raises RuntimeError when there is none.
    """
    if os.geteuid() != 0:
        return None
    if existing.exists() and (owner := existing.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise RuntimeError("PostgreSQL refuses to run as root, and there is no account 'nobody'") from None
    return Account(entry.pw_uid, entry.pw_gid)


def reachable(path: Path, account: Account) -> bool:
    """Whether the account may traverse every folder above ``path``, by mode bits (access lists are not looked at)."""
    for folder in path.resolve().parents:
        if not folder.exists():
            continue  # ours to make, and made open enough
        status = folder.stat()
        if status.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif status.st_gid == account.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True


def sibling_folder(home: Path, token: str) -> Path:
    """The folder outside that belongs to ``home``, made on demand (root's, traversable by all).

    ``token`` is stored in ``home``, so that a home deleted and made anew does not meet its predecessor's data.
    """
    return _own_folder(_OUTSIDE / f"gradeline-{_digest(str(home.resolve()))}-{token}")


def copy_of_binaries(install: Path, parts: tuple[str, ...]) -> Path:
    """A copy of ``parts`` of the folder ``install`` that every account can reach and run; made once, reused after.

    Keyed by the path, and by the age and size of the files, so that an upgrade is copied anew.
    """
    key = [str(install.resolve())]
    for part in parts:
        for file in sorted((install / part).rglob("*")):
            status = file.stat()
            key.append(f"{file}:{status.st_size}:{status.st_mtime_ns}")
    target = _OUTSIDE / f"gradeline-{_digest(*key)}-binaries"
    if not target.exists():
        draft = _own_folder(target.with_name(f"{target.name}.{os.getpid()}"))
        for part in parts:
            unneeded = shutil.ignore_patterns("*.a", "include")
            shutil.copytree(install / part, draft / part, symlinks=True, ignore=unneeded)
        for entry in (draft, *draft.rglob("*")):
            if not entry.is_symlink():
                entry.chmod(0o755 if entry.is_dir() or entry.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            draft.rename(target)
        except OSError:  # another stack was quicker
            shutil.rmtree(draft)
    return _own_folder(target)


def _own_folder(path: Path) -> Path:
    """Makes ``path``, or checks that it is ours: in a folder open to all, somebody else may have put it there first."""
    try:
        path.mkdir(mode=0o711)
        path.chmod(0o755)  # whatever the umask says; what is secret inside has its own mode
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise RuntimeError(f"{path} exists and is not a folder that only we can write; remove it") from None
    return path


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
