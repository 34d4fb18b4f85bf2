"""A lock between processes on one machine: a file that the operating system unlocks when its holder dies."""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    _BUSY: type[OSError] = PermissionError
else:
    import fcntl

    _BUSY = BlockingIOError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.2
"""Seconds between two tries. Waiting within the system's own call would not end at a Ctrl-C on Windows."""
_LOCKED_BYTE = 1 << 30
"""On Windows a locked byte cannot be read: this one lies behind what the holder writes about itself."""


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold a lock file, waiting while another process or thread does; the file goes when it is released.

    It is not for one thread twice: that would wait for itself.

    Args:
        path: the lock file; its folder has to be there.
        on_wait: told once, before the first wait, who holds it: "process 4711", with the machine or container where
            that is another one.

    Raises:
        OSError: the file cannot be made, is a link or no regular file, or the file system has no locks.
    """
    file = _acquire(path, on_wait)
    try:
        yield
    finally:
        _release(path, file)


def _acquire(path: Path, on_wait: Callable[[str], None]) -> BinaryIO:
    pause = _FIRST_PAUSE
    is_reported = False
    while True:
        file = _open(path)
        try:
            if _try_lock(file):
                # Whoever held it may have removed the file between the two calls: then this locks nothing.
                if _is_at(path, file):
                    file.truncate(0)
                    file.write(f"{os.getpid()} {platform.node()}".encode())
                    file.flush()
                    return file
                pause = 0.0
            elif not is_reported:
                is_reported = True
                on_wait(_holder(file))
        except BaseException:
            file.close()
            raise
        file.close()
        time.sleep(pause)
        pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)


def _open(path: Path) -> BinaryIO:
    """Open or create a lock file; not through a link, because the holder writes into it."""
    more = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | more, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(number, "a+b")


def _try_lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        return False
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    number, _, machine = file.read(100).decode("utf-8", errors="replace").partition(" ")
    if not number.isdigit():
        return "another process"
    return f"process {number}" + (f" on {machine}" if machine and machine != platform.node() else "")


def _release(path: Path, file: BinaryIO) -> None:
    # What cannot be removed, in a folder that turned read-only, is an unlocked file, which stops nobody.
    with suppress(OSError), file:
        if sys.platform == "win32":
            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        elif _is_at(path, file):
            # While it is still locked: see the check in _acquire.
            path.unlink(missing_ok=True)
    if sys.platform == "win32":
        # Windows refuses it while somebody else has the file open, and only then: nobody's lock is lost.
        with suppress(OSError):
            path.unlink()
