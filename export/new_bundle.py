"""The folder of a new bundle: it takes its name when it is complete, and not at all on any failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import UserError
from ..runtime.bundle.replaced_folder import replace_folder
from .bundle_lock import building, exporting, partial_path, remove_abandoned_export
from .request import check_output


@contextmanager
def new_bundle_folder(output: Path, force: bool, on_notice: Callable[[str], None]) -> Iterator[Path]:
    """A temporary sibling of `output` that takes its place on success and vanishes on any failure.

    Meanwhile nobody else exports to `output` or builds into the bundle that is there.
    """
    with ExitStack() as locks:
        locks.enter_context(exporting(output, on_notice))
        if output.is_dir():
            locks.enter_context(building(output, on_notice))
        # Another export or build may have put something there while this one loaded its model or waited.
        check_output(output, force=force)
        remove_abandoned_export(output)
        temporary = partial_path(output)
        try:
            temporary.mkdir()
            yield temporary
            if os.name == "nt":
                # Windows renames no folder with an open file in it; who opens it from here on makes the rename fail.
                locks.pop_all().close()
            replace_folder(temporary, output)
        except OSError as error:
            raise UserError(f"the bundle {output} cannot be written ({error}): check space and permissions.") from None
        finally:
            remove_abandoned_export(output)
