"""Files that are replaced together: every new one is put in place, or every old one stays.

The new files are written beside their destinations as ``.consisti2v-TOKEN-0.new.NAME`` and renamed at the end. While
several are renamed, the old ones are kept as ``.consisti2v-TOKEN-0.old.NAME``, so that a failure or a Ctrl-C half-way
restores them. A process that is killed leaves files of these names: ``.new`` ones can be deleted, and an ``.old`` one
is what its destination held before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ...errors import UserError

# With the number in front, and in any encoding, far below every file system's limit.
_SHOWN_CHARACTERS = 20
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def destination(path: Path) -> Path:
    """Where a file of this name is written: the name itself or, for a symbolic link, what the link points to.

    Raises:
        UserError: links that form a loop or cannot be followed, a folder, or anything else that is no regular file.
        OSError: the name is not possible or cannot be looked up.
    """
    try:
        mode = path.lstat().st_mode
        if linked := stat.S_ISLNK(mode):
            mode = path.stat().st_mode
    except ValueError:  # NUL, or half a character
        raise UserError(f"{str(path)!r} is no possible file name, so choose another name.") from None
    except (FileNotFoundError, NotADirectoryError):
        # A new file, or a dangling link, whose target is created.
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError as error:
        if not path.is_symlink():
            raise
        raise UserError(
            f'the symbolic link "{path}" cannot be followed ({error.strerror}), so remove it or choose another name.'
        ) from None
    if stat.S_ISDIR(mode):
        raise UserError(f'"{path}" is a folder, so give the name of a file.')
    if not stat.S_ISREG(mode):
        raise UserError(f'"{path}" is no regular file, so choose another name.')
    return Path(os.path.realpath(path)) if linked else path


@contextmanager
def replacing(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Paths for new content of `targets`, put in place if the body succeeds and removed if it does not.

    A single file is replaced by one atomic rename. Of several, all are replaced or none: when one cannot be, or the
    renames are interrupted, those already renamed get their old content back. Symbolic links stay and their targets
    are replaced.

    Raises:
        UserError: a target that cannot be a file, two targets that are one file, or old content that could not be
            restored; it names where that content is kept.
        OSError: a file could not be put in place.
    """
    token = secrets.token_hex(6)
    files = [_Replacement(target, f".consisti2v-{token}-{i}") for i, target in enumerate(targets)]
    seen: dict[str, Path] = {}
    for target, file in zip(targets, files, strict=True):
        other = seen.setdefault(os.path.realpath(file.target), target)
        if other is not target:
            raise UserError(f'"{other}" and "{target}" are the same file, so remove the link or choose another name.')
    try:
        yield [file.new for file in files]
        _with_deferred_signals(lambda deliver: _put_in_place(files, deliver))
    finally:
        _with_deferred_signals(lambda _: _clean_up(files))


class _Replacement:
    """One file on its way to its destination."""

    def __init__(self, path: Path, prefix: str) -> None:
        self.target = destination(path)
        # The suffix of the name that was asked for, which says what is written; a link's target may have another.
        name = path.stem[-_SHOWN_CHARACTERS:] + path.suffix
        self.new = self.target.with_name(f"{prefix}.new.{name}")
        self.old = self.target.with_name(f"{prefix}.old.{name}")
        self.restorable = True

    def keep_old(self) -> None:
        """Give the old content a second name, so that it is under its own name at every moment."""
        if not self.target.exists():
            return
        try:
            self.old.hardlink_to(self.target)
        except OSError:  # the file system has no hard links, or not for a file of another owner
            shutil.copy2(self.target, self.old)

    def restore(self) -> None:
        try:
            if self.old.exists():
                self.old.replace(self.target)
            else:
                self.target.unlink(missing_ok=True)
        except OSError:
            self.restorable = False

    def clean_up(self) -> None:
        # A folder that is gone or has become unwritable must not hide the error that is on its way.
        with suppress(OSError):
            self.new.unlink(missing_ok=True)
            if self.restorable:
                self.old.unlink(missing_ok=True)


def _clean_up(files: list[_Replacement]) -> None:
    for file in files:
        file.clean_up()


def _put_in_place(files: list[_Replacement], deliver_signals: Callable[[], None]) -> None:
    renamed: list[_Replacement] = []
    try:
        if len(files) > 1:
            for file in files:
                file.keep_old()
        for file in files:
            deliver_signals()
            file.new.replace(file.target)
            renamed.append(file)
    except BaseException as error:
        for file in reversed(renamed):
            file.restore()
        kept = [file.old for file in renamed if not file.restorable and file.old.exists()]
        if kept:
            raise UserError(
                f"{len(kept)} earlier files could not be restored after a failure ({_reason(error)}): they are kept "
                f'from "{kept[-1]}" to "{kept[0]}", so rename these to get them back.'
            ) from error
        raise


def _with_deferred_signals(work: Callable[[Callable[[], None]], None]) -> None:
    """Run `work` so that Ctrl-C and other signals with a Python handler do not break into it.

    Python runs such handlers between any two instructions of the main thread. Here a handler runs only where `work`
    calls the function that it is given, or after `work`.
    """
    if threading.current_thread() is not threading.main_thread():
        work(lambda: None)
        return
    pending: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    deferred = {number: handler for number, handler in handlers.items() if callable(handler)}

    def deliver() -> None:
        while pending:
            number, frame = pending.pop(0)
            deferred[number](number, frame)

    try:
        for number in deferred:
            signal.signal(number, lambda number, frame: pending.append((number, frame)))
        work(deliver)
    finally:
        for number, handler in deferred.items():
            signal.signal(number, handler)
        deliver()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
