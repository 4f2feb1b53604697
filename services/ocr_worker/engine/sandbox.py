"""What a reading process may still do on Linux, should a document take it over: compute, read that document, write
that document's page images. The kernel holds it to that (Landlock and seccomp); elsewhere, and on kernels without
them, limits and an empty environment are all there is.

Without this it would be the worker's account with another address space: it could read every tenant's files and, in
``/proc/<worker>/environ``, the secrets that its own environment lacks, and send them anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["confine_to", "deny_system_calls"]

_ROOT: Final = Path(__file__).resolve().parents[3]

# linux/prctl.h, linux/seccomp.h, linux/filter.h, linux/audit.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_SPEC_ALLOW: Final = 1 << 2  # or older kernels slow the whole process down against Spectre
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EACCES
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_X32: Final = 0x40000000

# Machine → (audit architecture, number of seccomp(2), system calls refused, those allowed on itself only, prlimit64).
# Numbers from the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_MACHINES: Final = {
    "x86_64": (
        0xC000003E,
        317,
        (
            *(41, 42, 43, 49, 50, 288),  # socket, connect, accept, bind, listen, accept4
            *(59, 322, 101, 310, 311),  # execve, execveat, ptrace, process_vm_readv, process_vm_writev
            *(
                129,
                297,
                424,
                434,
                438,
            ),  # rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal, pidfd_open, pidfd_getfd
            *(425, 321, 298, 323),  # io_uring_setup, bpf, perf_event_open, userfaultfd
            *(248, 249, 250),  # add_key, request_key, keyctl
            *(
                165,
                166,
                155,
                161,
                272,
                308,
                304,
            ),  # mount, umount2, pivot_root, chroot, unshare, setns, open_by_handle_at
            *(246, 169, 175, 313),  # kexec_load, reboot, init_module, finit_module
        ),
        (62, 200, 234),  # kill, tkill, tgkill
        302,
    ),
    "aarch64": (
        0xC00000B7,
        277,
        (
            *(198, 203, 202, 200, 201, 242),
            *(221, 281, 117, 270, 271),
            *(138, 240, 424, 434, 438),
            *(425, 280, 241, 282),
            *(217, 218, 219),
            *(40, 39, 41, 51, 97, 268, 265),
            *(104, 142, 105, 273),
        ),
        (129, 130, 131),
        261,
    ),
}

# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_TCP: Final = 0b11  # bind, connect
_SCOPES: Final = 0b11  # abstract sockets and signals of others


def deny_system_calls() -> bool:
    """No network, no other programs, no hand on other processes, from now on and for good. False: not possible here."""
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.byteorder != "little":
        return False
    architecture, seccomp, refused, on_itself, prlimit = machine
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _REFUSE),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _REFUSE),
    ]
    for number in refused:
        program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _REFUSE)]
    for number, only in (*((n, os.getpid()) for n in on_itself), (prlimit, 0)):
        program += [
            _step(_EQUAL, number, 0, 4),
            _step(_LOAD, _FIRST_ARGUMENT),
            _step(_EQUAL, only, 0, 1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
        ]
    program.append(_step(_RETURN, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(head)) == 0)


def confine_to(document: Path, images: Path | None) -> bool:
    """From now on this process reads ``document`` and Python's libraries, and makes files in the folder ``images``;
    no other file can be opened. For good: a second call can only take away. False: not possible here."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < 1:
        return False
    # What a kernel does not know must not be asked of it: rights came with versions 2, 3 and 5, the rest with 4 and 6.
    handled = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    wanted = struct.pack("QQQ", handled, _TCP, _SCOPES)[: 8 + 8 * (version >= 4) + 8 * (version >= 6)]
    ruleset = libc.syscall(_CREATE_RULESET, wanted, len(wanted), 0)
    if ruleset < 0:
        return False
    try:
        # Python loads some modules only when they are first needed.
        for folder in _libraries():
            _allow(libc, ruleset, folder, (_READ_FILE | _READ_DIR) & handled)
        _allow(libc, ruleset, document, _READ_FILE & handled)
        if images is not None:
            rights = _READ_FILE | _WRITE_FILE | _MAKE_FILE | _REMOVE_FILE | _TRUNCATE
            _allow(libc, ruleset, images, rights & handled)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _libraries() -> Iterable[Path]:
    """Where code lies. Of our own tree the packages alone: the data folder is often in there too."""
    yield _ROOT / "services"
    yield _ROOT / "shared"
    for folder in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        yield Path(folder)
    for entry in sys.path:
        path = Path(entry)
        if entry and path.is_dir() and path != _ROOT and path not in _ROOT.parents:
            yield path


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    with suppress(OSError):  # not there: nothing to allow
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, parent), 0)
        finally:
            os.close(parent)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)
