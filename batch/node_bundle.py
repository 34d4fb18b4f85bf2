"""A bundle on every node of a cluster: copied once, kept under its digest, and checked by it before it is used."""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from ..errors import UserError
from ..runtime.bundle.bundle import Bundle
from ..runtime.files.file_lock import locked

_CHUNK = 32 * 2**20


class FileSource:
    """Serves a bundle's files and a listing's photos, and nothing else, to the other nodes. Run as an actor."""

    def __init__(self, bundle: str, images: Sequence[str]) -> None:
        self._bundle = Bundle.open(bundle)
        self._images = set(images)
        self._begun: Counter[str] = Counter()
        root = self._bundle.path
        self._files = {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        }

    def bundle_files(self) -> tuple[str, dict[str, int]]:
        """The bundle's digest, and the bytes of each of its files."""
        return self._bundle.digest, self._files

    def read(self, name: str, offset: int) -> bytes:
        """At most 32 MiB of one of the bundle's files."""
        if name not in self._files:
            raise KeyError(name)
        with (self._bundle.path / name).open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK)

    def begin(self, key: str, path: str) -> tuple[int, bytes]:
        """How often a row was begun, this time included, and the content of its photo."""
        if path not in self._images:
            raise KeyError(path)
        self._begun[key] += 1
        return self._begun[key], Path(path).read_bytes()


def bundle_on_node(path: str, source: Any) -> Path:
    """The bundle on this node: at its own path where that holds it, else in the user's cache folder.

    Args:
        path: of the bundle, as the command was given it.
        source: the :class:`FileSource` actor.

    Raises:
        UserError: what was copied has another digest, or does not fit on the disk.
    """
    import ray

    digest, files = ray.get(source.bundle_files.remote())
    kept = platformdirs.user_cache_path("consisti2v", appauthor=False) / "bundles" / digest
    for folder in (Path(path), kept):
        if _holds(folder, digest, files):
            return folder
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.with_suffix(".lock")):
            if not _holds(kept, digest, files):
                _copy(source, files, kept, digest)
    except OSError as error:
        raise UserError(f'the bundle cannot be copied to "{kept}" ({error.strerror}): make room there.') from None
    return kept


def _holds(folder: Path, digest: str, files: dict[str, int]) -> bool:
    try:
        sizes = {name: (folder / name).stat().st_size for name in files}
        return sizes == files and Bundle.open(folder, verify=False).digest == digest
    except (OSError, UserError):
        return False


def _copy(source: Any, files: dict[str, int], target: Path, digest: str) -> None:
    import ray

    partial = target.with_name(f".{digest}-{secrets.token_hex(4)}")
    try:
        for name, size in files.items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as content:
                while content.tell() < size:
                    content.write(ray.get(source.read.remote(name, content.tell())))
        Bundle.open(partial, expect_digest=digest)
        if target.exists():  # a damaged copy
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
