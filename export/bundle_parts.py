"""Parts that a bundle gains or loses after its export, and their place in ``bundle.json``: the bundle is whole at every
moment, and on any failure what it was before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..runtime.bundle.bundle import Bundle, hash_files
from ..runtime.bundle.manifest import Manifest, StageSpec
from ..runtime.bundle.stage_graphs import graph_files
from ..runtime.bundle.typed_json import MANIFEST_NAME
from ..runtime.files.guarded_read import MANIFEST, read_text
from .bundle_lock import building, partial_path


def rewrite_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Read the manifest as it is now, change it, check it, and put it in place at once, with the bundle's lock.

    Raises:
        UserError: it cannot be read or written; the old one stays.
    """
    with building(bundle):
        path = bundle / MANIFEST_NAME
        temporary = partial_path(path)
        try:
            manifest = change(Manifest.from_json(read_text(path, MANIFEST)))
            text = manifest.to_json()
            Manifest.from_json(text)
            # Created, and nothing that is there is followed or overwritten: it was removed with the lock.
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions.") from None
        finally:
            temporary.unlink(missing_ok=True)
        return manifest


def replace_parts(bundle: Path, temporary: Path, names: Collection[str], add: Callable[[Manifest], Manifest]) -> None:
    """Move new files into a bundle and record them, or nothing: what is replaced leaves the manifest first, what is new
    enters it last. Call it within a build.

    Args:
        bundle: its folder.
        temporary: folder in the bundle that holds the new files, each by its path in the bundle.
        names: these paths.
        add: adds what is to be said of them; their hashes are recorded beside it.

    Raises:
        UserError: the manifest cannot be written.
        OSError: a file cannot be moved.
    """
    manifest, replaced = bundle / MANIFEST_NAME, temporary / ".replaced"
    # Hashed before they are moved: what is in place is recorded at once.
    records = hash_files(temporary, names)
    replaced.mkdir()
    shutil.copy2(manifest, replaced)
    with ExitStack() as undo:
        undo.callback(_remove_empty, bundle, names)
        rewrite_manifest(bundle, lambda manifest: without_files(manifest, names))
        undo.callback((replaced / MANIFEST_NAME).replace, manifest)
        for number, name in enumerate(names):
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            if (bundle / name).exists():
                _move(bundle / name, replaced / str(number), undo)
            _move(temporary / name, bundle / name, undo)
        rewrite_manifest(bundle, lambda manifest: add(replace(manifest, files=manifest.files | records)))
        undo.pop_all()


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    source.rename(target)
    undo.callback(target.rename, source)


def _remove_empty(bundle: Path, names: Collection[str]) -> None:
    """Remove the folders that were made for these files."""
    for folder in sorted({parent for name in names for parent in Path(name).parents if parent.name}, reverse=True):
        if (bundle / folder).is_dir() and not any((bundle / folder).iterdir()):
            (bundle / folder).rmdir()


def without_files(manifest: Manifest, lost: Collection[str]) -> Manifest:
    """The manifest without these files and what cannot be used without them; an engine can without its facts."""
    gone = set(lost)
    gone.update(engine.metadata for engine in manifest.engines if engine.file in lost)
    for stages in manifest.variants.values():
        gone.update(name for graph in stages.values() if lost_graph(graph, lost) for name in graph_files(graph))
    variants = {
        precision: {stage: graph for stage, graph in stages.items() if not lost_graph(graph, lost)}
        for precision, stages in manifest.variants.items()
    }
    engines = [engine for engine in manifest.engines if engine.file not in lost]
    return replace(
        manifest,
        variants={precision: stages for precision, stages in variants.items() if stages},
        engines=tuple(replace(engine, metadata="") if engine.metadata in lost else engine for engine in engines),
        kernels=tuple(kernel for kernel in manifest.kernels if kernel.file not in lost),
        files={name: record for name, record in manifest.files.items() if name not in gone},
    )


def lost_graph(graph: StageSpec, lost: Collection[str]) -> bool:
    """Whether one of a graph's files is among the lost ones."""
    return any(name in lost for name in graph_files(graph))


def drop_lost(bundle: Bundle, lost: dict[str, str], on_notice: Callable[[str], None]) -> Bundle:
    """The bundle without what needs its lost files; what is left of them is removed. Call it within a build.

    Args:
        bundle: as it is now.
        lost: from :meth:`Bundle.lost_files`.
        on_notice: told what was dropped, in one line.

    Raises:
        UserError: the manifest cannot be written.
    """
    if not lost:
        return bundle
    before = bundle.manifest
    after = rewrite_manifest(bundle.path.resolve(), lambda manifest: without_files(manifest, lost))
    try:
        for name in before.files.keys() - after.files.keys():
            if bundle.file(name).is_file():
                bundle.file(name).unlink()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed ({error.strerror}): check its permissions.") from None
    first, fault = next(iter(lost.items()))
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    # A calibration takes hours at full size: the message names each one that is dropped.
    consequences = [
        f"; the {precision} graph of {stage} was calibrated on {graph.calibration.name}: pass --calibrate again"
        for precision, stages in before.variants.items()
        for stage, graph in stages.items()
        if graph.calibration is not None and stage not in after.variants.get(precision, {})
    ]
    on_notice(f"out of the manifest, lost or damaged: {first} ({fault}){more}{''.join(consequences)}")
    return Bundle(bundle.path, after)
