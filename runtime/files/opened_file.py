"""A file of a bundle that is opened once: what is hashed and what is used come through the same handle.

Regular files only, reached from the folder without following a link. What another program puts in the file's place
afterwards is not seen; what it writes into the file itself is found by the hash of the bytes that are used. Nothing is
mapped: a file that is cut short while it is in use would end the process.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import threading
import weakref
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
ALTERED = "was altered (its SHA-256 differs)"
_CHUNK = 1 << 22
_IS_LINK = "is a link"
_FROM_FOLDER = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")


class FileError(Exception):
    """What is wrong with a file, such as "is missing"."""


class OpenedFile:
    """One file below a folder.

    Args:
        folder: may itself be a link.
        name: path below it, with slashes, checked by :func:`.manifest.check_inner_path`.

    Raises:
        FileError: it is missing, is a link or lies behind one, is no regular file, or cannot be opened.
    """

    def __init__(self, folder: Path, name: str) -> None:
        try:
            descriptor = _open_below(folder, PurePosixPath(name).parts)
        except (FileNotFoundError, NotADirectoryError):
            raise FileError("is missing") from None
        except OSError as error:
            raise FileError(_IS_LINK if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})") from None
        self._file = io.FileIO(descriptor)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def sha256(self) -> tuple[str, int]:
        """Hexadecimal hash and number of the bytes in it."""
        digest, total, chunk = hashlib.sha256(), 0, memoryview(bytearray(_CHUNK))
        with self._lock:
            self._file.seek(0)
            while count := self._file.readinto(chunk):
                digest.update(chunk[:count])
                total += count
        return digest.hexdigest(), total

    def read(self, sha256: str | None = None, limit: int | None = None) -> Bytes:
        """All bytes, uint8 [size].

        Args:
            sha256: what they must hash to; None: not checked.
            limit: the most bytes that are read.

        Raises:
            FileError: they hash to something else, are more than `limit` or than fit into memory, or cannot be read.
        """
        size, digest, done = self.size, hashlib.sha256(), 0
        if limit is not None and size > limit:
            raise FileError(f"has {size} bytes, more than the {limit} allowed")
        try:
            content = np.empty(size, np.uint8)
            view = memoryview(content.data)
            with self._lock:
                self._file.seek(0)
                while done < size:
                    count = self._file.readinto(view[done : done + _CHUNK])
                    if not count:
                        raise FileError(f"was cut short to {done} bytes while it was read")
                    if sha256 is not None:
                        digest.update(view[done : done + count])
                    done += count
        except MemoryError:
            raise FileError(f"has {size} bytes, which do not fit into memory") from None
        except OSError as error:
            raise FileError(f"cannot be read ({error.strerror})") from None
        if sha256 is not None and digest.hexdigest() != sha256:
            raise FileError(ALTERED)
        return content


def link_fault(folder: Path, name: str) -> str | None:
    """Why a path below the folder is not taken: it is a link or lies behind one; None: neither, or nothing is there."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink() or getattr(os.path, "isjunction", lambda path: False)(path):
            outside = not path.resolve().is_relative_to(folder.resolve())
            return f"{_IS_LINK} to outside {folder}" if outside else _IS_LINK
    return None


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """Descriptor of a regular file; one that blocks when opened (a FIFO) is refused, not waited for."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    fault = link_fault(folder, "/".join(parts))
    if fault is not None:
        raise FileError(fault)
    if _FROM_FOLDER:
        # Each folder through the one before: none can become a link between the look and the opening.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for depth, part in enumerate(parts, 1):
            current, kind = descriptor, os.O_DIRECTORY if depth < len(parts) else 0
            try:
                descriptor = os.open(part, flags | os.O_NOFOLLOW | kind, dir_fd=current)
            finally:
                os.close(current)
    else:
        descriptor = os.open(folder.joinpath(*parts), flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError("is no regular file")
    return descriptor
