"""A variant's files and its place in the manifest: what is replaced goes, what is new comes, or all stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import hash_files
from ...runtime.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, StageSpec
from ...runtime.files.guarded_read import MANIFEST, read_text
from ..manifest_file import restore_manifest, rewrite_manifest
from .currency import LOSSES_FILE


@dataclass(frozen=True)
class Written:
    """A stage in the temporary folder."""

    spec: StageSpec
    record: dict[str, Any]
    """The stage's entry in ``losses.json``."""


def put_in_place(
    bundle: Path, precision: str, temporary: Path, written: dict[str, Written], kept: dict[str, dict[str, Any]]
) -> None:
    """Move the new stages in from a temporary folder, or none. The bundle is whole at every moment: what is replaced
    leaves the manifest first, what is new enters it last; on any failure everything moves back.
    """
    target, replaced, manifest_file = bundle / "variants" / precision, temporary / ".replaced", bundle / MANIFEST_NAME
    place = target.relative_to(bundle).as_posix()
    entries = {s: r for s, r in kept.items() if s not in written} | {s: w.record for s, w in written.items()}
    text = json.dumps({"precision": precision, "stages": entries}, indent=2) + "\n"
    (temporary / LOSSES_FILE).write_text(text, encoding="utf-8")
    names = [p.relative_to(temporary).as_posix() for p in sorted(temporary.rglob("*")) if p.is_file()]
    records = {f"{place}/{name}": record for name, record in hash_files(temporary, names).items()}
    replaced.mkdir()
    shutil.copy2(manifest_file, replaced)
    with ExitStack() as undo:
        before = Manifest.from_json(read_text(replaced / MANIFEST_NAME, MANIFEST))
        without = rewrite_manifest(bundle, lambda manifest: _without_stages(manifest, precision, place, written))
        undo.callback(
            lambda: restore_manifest(
                bundle, replaced / MANIFEST_NAME, without, lambda manifest: _with_again(manifest, before, precision)
            )
        )
        target.mkdir(exist_ok=True)
        for name in (*written, LOSSES_FILE):
            if (target / name).exists():
                _move(target / name, replaced / name, undo)
            _move(temporary / name, target / name, undo)
        rewrite_manifest(bundle, lambda manifest: with_stages(manifest, precision, written, records))
        undo.pop_all()


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    source.rename(target)
    undo.callback(lambda: target.rename(source))


def _without_stages(manifest: Manifest, precision: str, place: str, written: Collection[str]) -> Manifest:
    held = {stage: spec for stage, spec in manifest.variants.get(precision, {}).items() if stage not in written}
    dropped = (f"{place}/{LOSSES_FILE}", *(f"{place}/{stage}/" for stage in written))
    files = {name: record for name, record in manifest.files.items() if not name.startswith(dropped)}
    others = {name: stages for name, stages in manifest.variants.items() if name != precision}
    return replace(manifest, variants=others | ({precision: held} if held else {}), files=files)


def _with_again(manifest: Manifest, before: Manifest, precision: str) -> Manifest:
    """With the stages of a precision, and its files, as they were."""
    place = f"variants/{precision}/"
    files = {name: record for name, record in before.files.items() if name.startswith(place)}
    held = {precision: before.variants[precision]} if precision in before.variants else {}
    return replace(manifest, variants=manifest.variants | held, files=manifest.files | files)


def with_stages(
    manifest: Manifest, precision: str, written: dict[str, Written], records: dict[str, FileRecord]
) -> Manifest:
    held = manifest.variants.get(precision, {}) | {stage: entry.spec for stage, entry in written.items()}
    ordered = {stage: held[stage] for stage in manifest.stages if stage in held}
    return replace(manifest, variants=manifest.variants | {precision: ordered}, files=manifest.files | records)
