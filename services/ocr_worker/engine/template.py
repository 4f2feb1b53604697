"""The process that reading processes are copied from: it has the models loaded and never opens a document.

Forked children share its memory until they write to it, start in milliseconds and can be killed without a reload.
It has one thread, so forking is safe; the worker's own process has many, which is why it does not fork itself.

Started as ``python -m services.ocr_worker.engine.template <fd> <memory_bytes>`` (serve requests to fork) or with a
third argument ``direct`` (be the one reading process, where forking without exec is not safe: macOS).

Requests on the control socket are ``REQUEST``: ``F`` with a socket attached forks a child that serves on it and
answers its process id; ``R`` kills the child of that id if it still runs, and answers its wait status. A child is
reaped only on request, so an id can never name another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from typing import Final, NoReturn

from . import child
from .wire import FAILED, REPLY, REQUEST

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> None:
    control = socket.socket(fileno=int(arguments[0]))
    memory_bytes = int(arguments[1])
    # The worker decides when its readers end: by closing the socket, or by SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child.load()
    if arguments[2:] == ["direct"]:
        child.serve(control, memory_bytes)
        return
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, every page of it
    control.sendall(REPLY.pack(0))
    _rule(control, memory_bytes)


def _rule(control: socket.socket, memory_bytes: int) -> None:
    children: set[int] = set()
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
            if len(message) < REQUEST.size:
                return
            order, pid = REQUEST.unpack(message)
            answer = FAILED
            if order == b"F" and descriptors:
                try:
                    answer = _fork(control, descriptors[0], memory_bytes)
                    children.add(answer)
                except OSError:
                    answer = FAILED
                finally:
                    os.close(descriptors[0])
            elif order == b"R" and pid in children:
                answer = _end(pid)
                children.discard(pid)
            control.sendall(REPLY.pack(answer))
    except OSError:
        return
    finally:
        for pid in children:
            _end(pid)


def _fork(control: socket.socket, descriptor: int, memory_bytes: int) -> int:
    pid = os.fork()
    if pid == 0:
        _be_child(control, descriptor, memory_bytes)
    return pid


def _be_child(control: socket.socket, descriptor: int, memory_bytes: int) -> NoReturn:
    status = 1
    try:
        template = os.getppid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != template:
                os._exit(1)
        control.close()
        quiet = os.open(os.devnull, os.O_WRONLY)  # what a codec prints about a hostile file is nobody's log
        os.dup2(quiet, 2)
        child.serve(socket.socket(fileno=descriptor), memory_bytes, one_document=True)
        status = 0
    finally:
        os._exit(status)


def _end(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
