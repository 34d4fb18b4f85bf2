"""Replacing a bundle's folder by a new one, and undoing a replacement that was killed halfway.

A folder cannot be replaced in one step on every file system: the old one is renamed to ``.NAME.replaced``, then the new
one takes its name. A process that is killed between the two leaves no folder of that name; whoever looks for it next,
to read it or to export to it, renames the old one back.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UserError
from ..files.file_lock import locked


def export_lock(output: Path) -> Path:
    """The lock file of exports to a folder; beside it, so that it also serves before the folder exists."""
    return output.with_name(f".{output.name}.export.lock")


def replaced_folder(output: Path) -> Path:
    """Where the old folder lies during the replacement."""
    return output.with_name(f".{output.name}.replaced")


def replace_folder(new: Path, output: Path) -> None:
    """Give `new` the name `output`; a folder of that name stays as :func:`replaced_folder`, for the caller to remove.

    Call it with the :func:`export_lock`. On any failure, Ctrl-C included, the old folder has its name again.

    Raises:
        OSError: a rename fails.
    """
    try:
        if os.path.lexists(output):
            output.rename(replaced_folder(output))
        new.rename(output)
    except BaseException:
        rename_back(output)
        raise


def rename_back(output: Path) -> None:
    """Give the old folder its name again where no folder has it. Call it with the :func:`export_lock`."""
    old = replaced_folder(output)
    if not os.path.lexists(output) and old.is_dir() and not old.is_symlink():
        old.rename(output)


def recover_replaced(path: Path) -> None:
    """Undo, for a folder that is not there, a replacement that was killed halfway; one that still runs is waited for.

    Raises:
        UserError: the old folder is there but cannot be renamed.
    """
    try:
        # The folder itself: exports resolve links too.
        output = path.resolve()
        if os.path.lexists(output) or not replaced_folder(output).is_dir():
            return
    except (OSError, ValueError, RuntimeError):
        # Not a name that a folder can have.
        return
    try:
        with locked(export_lock(output)):
            rename_back(output)
    except OSError as error:
        raise UserError(
            f"{path} was being replaced when its export was killed; the old bundle is {replaced_folder(output)} and "
            f"cannot be renamed back ({error.strerror}): rename it to {output.name}, or check the permissions of its "
            "folder."
        ) from None
