"""A bundle on disk: opening it, and checking it before anything is loaded.

What was exported must be whole for anything to run. What ``consisti2v build`` made of it can be made again: it is
checked when it is about to be used. Every file is opened once and used through that handle (see :mod:`.opened_file`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ...errors import DerivedFileError, UserError
from ..files.guarded_read import MANIFEST, read_text
from ..files.opened_file import ALTERED, Bytes, FileError, OpenedFile, link_fault
from ..one_process import OneProcess
from ..request.presets import PRESETS, Presets
from .consistency import check_graph, check_sizes
from .digest import check_digest
from .graph_source import GraphSource
from .home import find_bundle
from .manifest import DERIVED_FOLDERS, FileRecord, Manifest, StageSpec, graph_sha256
from .recommended import check_recommended
from .tuned import TUNED, read_tuned
from .typed_json import MANIFEST_NAME

T = TypeVar("T")
_CHUNK = 1 << 22
_REOPENED = 10
"""Times that a bundle is opened again because another one took its place meanwhile."""


class Bundle(OneProcess):
    """A folder made by ``consisti2v export``.

    Examples:
        >>> bundle = Bundle.open("consisti2v-256")
        >>> bundle.manifest.model.frames
        16
    """

    _instead = "pass its path, and open it in each process"

    def __init__(self, path: Path, manifest: Manifest, *, hashed: bool = False) -> None:
        """As :meth:`open`, without looking at any file; `hashed`: derived files are hashed before their first use."""
        super().__init__()
        self.path = path
        self.manifest = manifest
        self._hashed = hashed
        self._sound: set[str] = set()
        self._opened: dict[str, OpenedFile] = {}
        self._graphs: dict[str, GraphSource] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True, expect_digest: str | None = None) -> Bundle:
        """Read the manifest, open the exported files and check them.

        Args:
            path: the bundle's folder, or its name: "demo", or one under the bundle folder (``bundle_home``).
            verify: hash the exported files (about a second a gigabyte), and again every byte that is used, when it is
                read. Presence, size and what graphs refer to are checked in any case.
            expect_digest: what :attr:`digest` must be; None: anything.

        Raises:
            UserError: not a bundle, or an exported file is missing, truncated or altered, any is a link, a graph refers
                to what is not recorded, sizes contradict each other, or the digest is another one.
        """
        for _ in range(_REOPENED):
            folder = find_bundle(path)
            before = _identity(folder)
            try:
                bundle = cls._open_once(folder, verify, expect_digest)
            except UserError:
                if _identity(folder) == before:
                    raise
            else:
                if _identity(folder) == before:
                    return bundle
            # An export or a build put another one in its place meanwhile: its files do not fit what was read before.
        raise UserError(f"bundle {path} is replaced again and again while it is opened: wait until that has ended.")

    @classmethod
    def _open_once(cls, folder: Path, verify: bool, expect_digest: str | None) -> Bundle:
        manifest_path = folder / MANIFEST_NAME
        # os.path answers for names that are too long or hold a NUL, where Path raises.
        if not os.path.lexists(manifest_path):
            raise UserError(
                f"{folder} is not a bundle: it holds no {MANIFEST_NAME}; make one with 'consisti2v export'."
            )
        manifest = Manifest.from_json(read_text(manifest_path, MANIFEST))
        bundle = cls(folder, manifest, hashed=verify)
        if expect_digest is not None:
            check_digest(bundle.digest, expect_digest, folder)
        bundle.check_files()
        if verify:
            bundle._verify([name for name in bundle.manifest.files if not bundle.is_derived(name)])
        for stage in manifest.stages.values():
            check_graph(bundle.graph(stage), stage)
        check_sizes(manifest)
        check_recommended(manifest.recommended, manifest.scheduler, MANIFEST_NAME)
        return bundle

    @cached_property
    def presets(self) -> Presets:
        """What each preset stands for: the general ones, and in their place those of :data:`TUNED`, where it is there.

        Raises:
            UserError: the file is not as ``consisti2v tune`` wrote it for this bundle.
        """
        unet = graph_sha256(self.manifest, self.manifest.stages["unet"])
        return PRESETS | read_tuned(self.path / TUNED, unet, self.manifest.scheduler)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical form, hexadecimal: it stands for every recorded file."""
        return self.manifest.digest

    def file(self, name: str) -> Path:
        """Where a file lies. To use its content, :meth:`read` it."""
        return self.path / name

    def read(self, name: str, limit: int | None = None, *, hashed: bool | None = None) -> Bytes:
        """The bytes of a recorded file, uint8, hashed as they are read.

        Args:
            limit: the most bytes that are read.
            hashed: compare with the recorded hash; None: as the bundle was opened.

        Raises:
            UserError: the file is not as recorded; a :class:`DerivedFileError` where ``consisti2v build`` made it.
        """
        is_hashed = self._hashed if hashed is None else hashed
        try:
            file = self._sized(self._open_file(name), name)
            return file.read(self.manifest.files[name].sha256 if is_hashed else None, limit)
        except FileError as fault:
            raise self._refusal(name, fault) from None

    def _refusal(self, name: str, fault: object, command: str = "consisti2v build") -> UserError:
        if self.is_derived(name):
            return DerivedFileError(f"bundle file {name} {fault}: make it again with '{command}'.")
        return UserError(f"bundle file {name} {fault}: copy it again, or export again.")

    def graph(self, stage: StageSpec, *, hashed: bool | None = None) -> GraphSource:
        """A graph of the manifest with its weights, read through the bundle; see :meth:`read` for `hashed`."""

        def read(name: str, limit: int | None) -> Bytes:
            return self.read(name, limit, hashed=hashed)

        made = GraphSource(stage.file, read, self.manifest.files.__contains__)
        if hashed is not None:
            return made
        with self._lock:
            return self._graphs.setdefault(stage.file, made)

    def _open_file(self, name: str) -> OpenedFile:
        """The file's one handle, made at its first use and kept."""
        with self._lock:
            if name not in self._opened:
                self._opened[name] = OpenedFile(self.path, name)
            return self._opened[name]

    def _sized(self, file: OpenedFile, name: str) -> OpenedFile:
        """The file itself, of which the size is as recorded."""
        recorded = self.manifest.files[name].bytes
        if file.size != recorded:
            raise FileError(f"has {file.size} bytes instead of {recorded}")
        return file

    def is_derived(self, name: str) -> bool:
        """Whether ``consisti2v build`` made the file, and makes it again."""
        return name.startswith(DERIVED_FOLDERS) and not name.startswith(self._source_folders)

    @cached_property
    def _source_folders(self) -> tuple[str, ...]:
        return tuple(stage.file.rpartition("/")[0] + "/" for stage in self.manifest.stages.values())

    def check_files(self) -> None:
        """Presence and size of every exported file, and that no file is a link."""
        for name in self.manifest.files:
            derived = self.is_derived(name)
            if not derived and (not self.file(name).exists() or self.file(name).is_dir()):
                raise UserError(f"bundle {self.path} lacks {name}: copy it completely, or export it again.")
            linked = link_fault(self.path, name)
            if linked is not None:
                raise UserError(f"bundle file {name} {linked}: replace it by the file itself.")
            fault = None if derived else self.fault(name, hashed=False)
            if fault is not None:
                raise self._refusal(name, fault)

    def verify(self) -> None:
        """Hash every recorded file, compare with the manifest, and look through every graph.

        Raises:
            UserError: with every file that is not as recorded, or the first graph that cannot be used.
        """
        self._verify(self.manifest.files, anew=True)
        for stages in (self.manifest.stages, *self.manifest.variants.values()):
            for stage in stages.values():
                check_graph(self.graph(stage), stage)

    def fault(self, name: str, *, hashed: bool | None = None, anew: bool = False) -> str | None:
        """What is wrong with a recorded file, such as "is missing"; None: nothing.

        Args:
            hashed: read the whole file; None: as the bundle was opened, and once.
            anew: look at what lies in the folder now, not at what was opened.
        """
        record = self.manifest.files[name]
        try:
            # What was built may be built again: only its use keeps it open.
            opened = OpenedFile(self.path, name) if anew or self.is_derived(name) else self._open_file(name)
            file = self._sized(opened, name)
            if hashed is False or (hashed is None and (not self._hashed or name in self._sound)):
                return None
            if file.sha256() != (record.sha256, record.bytes):
                return ALTERED
        except FileError as fault:
            return str(fault)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        self._sound.add(name)
        return None

    def lost_files(self, hashed: Collection[str] = ()) -> dict[str, str]:
        """Derived files that are not as recorded, each with its :meth:`fault`; those in `hashed` are read for it."""
        found = {name: self.fault(name, hashed=name in hashed) for name in self.manifest.files if self.is_derived(name)}
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
            fault = self.fault(name) if name in self.manifest.files and self.is_derived(name) else None
            if fault is not None:
                raise self._refusal(name, fault, command)

    def _verify(self, names: Iterable[str], *, anew: bool = False) -> None:
        """Hash files, and refuse in one sentence that names all that are not as recorded."""
        found = _in_parallel(lambda name: self.fault(name, hashed=True, anew=anew), names)
        faults = {name: fault for name, fault in found.items() if fault is not None}
        if faults:
            message = ", ".join(f"{name} {fault}" for name, fault in faults.items())
            remedies = ("copy it again, or export again", "make it again with 'consisti2v build'")
            remedy = ", or ".join(remedies[derived] for derived in sorted({self.is_derived(name) for name in faults}))
            raise UserError(f"bundle file{'s' * (len(faults) > 1)} {message}: {remedy}.")


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells a bundle from another one in its place; None: nothing can be told."""
    try:
        place, manifest = folder.stat(), (folder / MANIFEST_NAME).stat()
    except (OSError, ValueError):
        return None
    return place.st_dev, place.st_ino, manifest.st_ino, manifest.st_mtime_ns


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """SHA-256 and size of files below `folder`."""
    return _in_parallel(lambda name: _hash_file(folder / name), names)


def _in_parallel(work: Callable[[str], T], names: Iterable[str]) -> dict[str, T]:
    """Hashing releases the interpreter, so files go in parallel."""
    ordered = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(ordered, pool.map(work, ordered), strict=True))


def _hash_file(path: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(digest.hexdigest(), size)
