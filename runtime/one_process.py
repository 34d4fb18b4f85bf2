"""Objects that belong to the process that made them: they hold threads, open files and memory of a device.

A copy or a pickle would share or lack these. A forked child has the memory but not the threads: a stage that runs or
is released there waits for them for ever.
"""

from __future__ import annotations

import os
import weakref
from typing import NoReturn

from ..errors import UserError


class OneProcess:
    """Refuses to be copied or pickled; :meth:`forked` is called in a forked child. A subclass's ``__init__`` calls
    this one's (a ``__new__`` would hide the subclass's own signature from ``help()`` and editors).
    """

    _instead = "make one in each process"

    def __init__(self) -> None:
        _made.add(self)

    def __reduce__(self) -> NoReturn:
        raise UserError(f"{type(self).__name__} can be neither copied nor pickled: {self._instead}.")

    def forked(self) -> None:
        """This process is a child that was forked after the object was made."""


def _forked() -> None:
    for one in list(_made):
        one.forked()


_made: weakref.WeakSet[OneProcess] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
