"""A bundle on disk: opening it, and checking it before anything is loaded.

What was exported must be whole for anything to run. What ``consisti2v build`` made of it can be made again: it is
checked when it is about to be used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from .bundle_home import find_bundle
from .errors import DerivedFileError, UserError
from .guarded_read import MANIFEST, read_text
from .manifest import MANIFEST_NAME, FileRecord, Manifest
from .recommended import check_recommended

_CHUNK = 1 << 22
_DERIVED = ("engines/", "variants/", "kernels/")
_ALTERED = "was altered (its SHA-256 differs)"


class Bundle:
    """A folder made by ``consisti2v export``.

    Example:
        >>> bundle = Bundle.open("consisti2v-256")
        >>> bundle.manifest.model.frames
        16
    """

    def __init__(self, path: Path, manifest: Manifest, *, hashed: bool = False) -> None:
        """As :meth:`open`, without looking at any file; `hashed`: derived files are hashed before their first use."""
        self.path = path
        self.manifest = manifest
        self._hashed = hashed
        self._sound: set[str] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Read the manifest and check the files.

        Args:
            path: the bundle's folder, or its name: "demo", or one under the bundle folder (``bundle_home``).
            verify: hash the exported files (about a second a gigabyte), and engines, graphs in other precisions and
                kernels before their first use. Presence and size are checked in any case.

        Raises:
            UserError: not a bundle, or an exported file is missing, truncated or altered, or any is outside the bundle.
        """
        folder = find_bundle(path)
        manifest_path = folder / MANIFEST_NAME
        # os.path answers for names that are too long or hold a NUL, where Path raises.
        if not os.path.lexists(manifest_path):
            raise UserError(
                f"{folder} is not a bundle: it holds no {MANIFEST_NAME}; make one with 'consisti2v export'."
            )
        manifest = Manifest.from_json(read_text(manifest_path, MANIFEST))
        check_recommended(manifest.recommended, manifest.scheduler, MANIFEST_NAME)
        bundle = cls(folder, manifest, hashed=verify)
        bundle.check_files()
        if verify:
            bundle._verify([name for name in bundle.manifest.files if not bundle.is_derived(name)])
        return bundle

    def file(self, name: str) -> Path:
        return self.path / name

    def is_derived(self, name: str) -> bool:
        """Whether ``consisti2v build`` made the file, and makes it again."""
        return name.startswith(_DERIVED) and not name.startswith(self._source_folders)

    @cached_property
    def _source_folders(self) -> tuple[str, ...]:
        return tuple(stage.file.rpartition("/")[0] + "/" for stage in self.manifest.stages.values())

    def check_files(self) -> None:
        """Presence and size of every exported file, and the place of every file."""
        root = self.path.resolve()
        for name in self.manifest.files:
            path, derived = self.file(name), self.is_derived(name)
            if not derived and not path.is_file():
                raise UserError(f"bundle {self.path} lacks {name}: copy it completely, or export it again.")
            if not path.resolve().is_relative_to(root):
                raise UserError(f"bundle file {name} is a link to outside {self.path}: replace it by the file itself.")
            fault = None if derived else self.fault(name, hashed=False)
            if fault is not None:
                raise UserError(f"bundle file {name} {fault}: copy it again, or export again.")

    def verify(self) -> None:
        """Hash every recorded file and compare with the manifest.

        Raises:
            UserError: with every file that is not as recorded.
        """
        self._verify(self.manifest.files)

    def fault(self, name: str, *, hashed: bool | None = None) -> str | None:
        """What is wrong with a recorded file, such as "is missing"; None: nothing.

        Args:
            hashed: read the whole file; None: as the bundle was opened, and once.
        """
        path, record = self.file(name), self.manifest.files[name]
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != record.bytes:
            return f"has {size} bytes instead of {record.bytes}"
        if hashed is False or (hashed is None and (not self._hashed or name in self._sound)):
            return None
        try:
            digest = _hash_file(path)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if digest != record:
            return _ALTERED
        self._sound.add(name)
        return None

    def lost_files(self, hashed: Collection[str] = ()) -> dict[str, str]:
        """Derived files that are not as recorded, each with its :meth:`fault`; those in `hashed` are read for it."""
        names = [name for name in self.manifest.files if self.is_derived(name)]
        found = {name: self.fault(name, hashed=name in hashed) for name in names}
        return {name: fault for name, fault in found.items() if fault is not None}

    def require(self, names: Iterable[str], command: str) -> None:
        """Check derived files that are about to be used; exported ones were checked when the bundle was opened.

        Args:
            names: those that the manifest does not record are passed over.
            command: what makes them again.

        Raises:
            DerivedFileError: one is missing or damaged.
        """
        for name in names:
            if name in self.manifest.files and self.is_derived(name):
                fault = self.fault(name)
                if fault is not None:
                    raise DerivedFileError(f"bundle file {name} {fault}: make it again with '{command}'.")

    def _verify(self, names: Iterable[str]) -> None:
        """Hash files, and refuse in one sentence that names all that are not as recorded."""
        found = {name: self.fault(name, hashed=False) for name in names}
        whole = [name for name, fault in found.items() if fault is None]
        try:
            digests = hash_files(self.path, whole)
        except OSError as error:
            raise UserError(
                f"bundle file {error.filename} cannot be read ({error.strerror}): check its permissions, "
                "or copy it again."
            ) from None
        found |= {name: _ALTERED for name, digest in digests.items() if digest != self.manifest.files[name]}
        faults = {name: fault for name, fault in found.items() if fault is not None}
        self._sound.update(found.keys() - faults.keys())
        if not faults:
            return
        told = ", ".join(f"{name} {fault}" for name, fault in faults.items())
        mends = {True: "make it again with 'consisti2v build'", False: "copy it again, or export again"}
        mend = ", or ".join(mends[derived] for derived in sorted({self.is_derived(name) for name in faults}))
        raise UserError(f"bundle file{'s' * (len(faults) > 1)} {told}: {mend}.")


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """SHA-256 and size of files below `folder`; hashing releases the interpreter, so files go in parallel."""
    ordered = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        records = pool.map(lambda name: _hash_file(folder / name), ordered)
        return dict(zip(ordered, records, strict=True))


def _hash_file(path: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)
