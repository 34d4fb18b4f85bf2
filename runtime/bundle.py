"""A bundle on disk: opening it, and checking it before anything is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import UserError
from .manifest import MANIFEST_NAME, FileRecord, Manifest

_CHUNK = 1 << 22


class Bundle:
    """A folder made by ``consisti2v export``.

    Example:
        >>> bundle = Bundle.open("consisti2v-256")
        >>> bundle.manifest.model.frames
        16
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Read the manifest and check the files.

        Args:
            path: the bundle's folder.
            verify: hash every file (about a second a gigabyte). Presence and size are checked in any case.

        Raises:
            UserError: not a bundle, or a file is missing, truncated, altered or outside the bundle.
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST_NAME
        try:
            if not folder.exists():
                raise UserError(f"bundle {folder} does not exist: make one with 'consisti2v export'.")
            text = manifest_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(
                f"{folder} is not a bundle: it holds no readable {MANIFEST_NAME}; make one with 'consisti2v export'."
            ) from None
        bundle = cls(folder, Manifest.from_json(text))
        bundle.check_files()
        if verify:
            bundle.verify()
        return bundle

    def file(self, name: str) -> Path:
        return self.path / name

    def check_files(self) -> None:
        """Presence, size and place of every recorded file."""
        root = self.path.resolve()
        for name, record in self.manifest.files.items():
            path = self.file(name)
            if not path.is_file():
                raise UserError(f"bundle {self.path} lacks {name}: copy it completely, or export it again.")
            if not path.resolve().is_relative_to(root):
                raise UserError(f"bundle file {name} is a link to outside {self.path}: replace it by the file itself.")
            size = path.stat().st_size
            if size != record.bytes:
                raise UserError(
                    f"bundle file {name} has {size} bytes instead of {record.bytes}: copy it again, or export again."
                )

    def verify(self) -> None:
        """Hash every recorded file and compare with the manifest."""
        try:
            digests = hash_files(self.path, self.manifest.files)
        except OSError as error:
            raise UserError(
                f"bundle file {error.filename} cannot be read ({error.strerror}): check its permissions, "
                "or copy it again."
            ) from None
        for name, digest in digests.items():
            if digest.sha256 != self.manifest.files[name].sha256:
                raise UserError(
                    f"bundle file {name} was altered (its SHA-256 differs): copy it again, or export again."
                )


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
