"""An export over a bundle: refused, waiting, killed halfway."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.export.bundle_lock import building, exporting
from consisti2v_rt.export.bundle_parts import rewrite_manifest
from consisti2v_rt.export.request import check_output
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.replaced_folder import replace_folder, replaced_folder
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME

# Replaces the first folder by the second and is killed just before the second rename.
KILLED = """
import os, signal, sys
from pathlib import Path
from consisti2v_rt.export.bundle_lock import building, exporting
from consisti2v_rt.runtime.bundle.replaced_folder import replace_folder

output, new = Path(sys.argv[1]), Path(sys.argv[2])
rename = Path.rename

def rename_once(path, target):
    if path == new:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = rename_once
with exporting(output), building(output):
    replace_folder(new, output)
"""


@pytest.fixture
def bundle(tmp_path: Path, demo_bundle: Path) -> Path:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    rewrite_manifest(folder, lambda manifest: replace(manifest, name="old"))
    return folder


@pytest.fixture
def killed(bundle: Path, demo_bundle: Path) -> Path:
    """A bundle whose replacement was killed between the two renames."""
    new = shutil.copytree(demo_bundle, bundle.parent / ".bundle.partial")
    child = subprocess.run([sys.executable, "-c", KILLED, str(bundle), str(new)], timeout=60)
    assert child.returncode == -signal.SIGKILL and not bundle.exists() and replaced_folder(bundle).is_dir()
    return bundle


needs_kill = pytest.mark.skipif(os.name == "nt", reason="Windows renames no folder with an open file in it")


@pytest.mark.slow
@needs_kill
def test_inspect_finds_a_bundle_that_was_being_replaced(killed: Path, consisti2v: Callable[..., Any]) -> None:
    shown = consisti2v("inspect", killed, "--verify")
    assert shown.code == 0, shown.stderr
    assert Bundle.open(killed).manifest.name == "old" and not replaced_folder(killed).exists()


@needs_kill
def test_the_library_finds_it_through_a_link(killed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(killed)
    assert ImageToVideo.from_bundle(tmp_path / "link").bundle.manifest.name == "old"


@needs_kill
def test_the_next_export_and_build_find_it(killed: Path) -> None:
    check_output(killed)
    assert Bundle.open(killed).manifest.name == "old"
    with building(killed):
        assert not (killed / ".build.lock").read_text().startswith("0")


@needs_kill
def test_a_bundle_that_cannot_be_renamed_back_is_named(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"being replaced .* \.bundle\.replaced|being replaced .*rename it to bundle"):
        Bundle.open(killed)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_replacement_that_fails_halfway_is_undone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    new, rename = tmp_path / ".bundle.partial", Path.rename
    new.mkdir()

    def interrupted(path: Path, target: Path) -> Path:
        if path == new:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error):
        replace_folder(new, bundle)
    assert Bundle.open(bundle).manifest.name == "old" and not replaced_folder(bundle).exists()


def test_what_was_built_is_not_replaced_unasked(bundle: Path, consisti2v: Callable[..., Any]) -> None:
    """Before anything is loaded; an empty or abandoned folder holds nothing."""
    (bundle / "engines").mkdir()
    check_output(bundle)
    (bundle / "variants" / "int8").mkdir(parents=True)
    refusal = consisti2v("export", "--random-weights", "tiny", "-o", bundle).refusal()
    assert "holds variants (int8), which a new export would remove" in refusal and "--force" in refusal
    check_output(bundle, force=True)
    (bundle / "bundle.json").write_text("damaged")
    with pytest.raises(UserError, match="holds variants"):
        check_output(bundle)


def test_an_export_and_a_build_wait_for_each_other(bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """A build that waits for an export goes on in the new bundle, under its lock."""
    told: list[str] = []
    seen: list[str] = []

    def build() -> None:
        with building(bundle, told.append):
            seen.append(Bundle.open(bundle).manifest.name)
            assert (bundle / ".build.lock").is_file()

    new = Path(shutil.copytree(demo_bundle, tmp_path / ".bundle.partial"))
    with exporting(bundle), building(bundle):
        other = threading.Thread(target=build)
        other.start()
        while not told:
            other.join(0.01)
        if os.name == "nt":
            pytest.skip("Windows renames no folder with an open file in it")
        replace_folder(new, bundle)
    other.join(30)
    assert seen == [Bundle.open(demo_bundle).manifest.name] and "which is writing to" in told[0]
    assert not (bundle / ".build.lock").exists()


def test_what_another_build_added_meanwhile_is_not_replaced(bundle: Path) -> None:
    """The export looks again once it has the bundle to itself."""
    pytest.importorskip("torch")
    from consisti2v_rt.export.new_bundle import new_bundle_folder

    check_output(bundle)
    (bundle / "engines" / "sm89-tensorrt-rtx-fp16").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"holds engines \(sm89-tensorrt-rtx-fp16\)"),
        new_bundle_folder(bundle, False, lambda line: None),
    ):
        raise AssertionError("the export went on")
    with new_bundle_folder(bundle, True, lambda line: None) as folder:
        (folder / "bundle.json").write_bytes((bundle / "bundle.json").read_bytes())
    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json"]
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]


def test_a_bundle_that_is_replaced_while_it_is_opened_is_opened_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(bundle, bundle.with_name("other")))
    name = next(name for name in Bundle.open(bundle).manifest.files if name.endswith(".data"))
    content = bytearray((other / name).read_bytes())
    content[0] ^= 1
    (other / name).write_bytes(content)
    data = json.loads((other / MANIFEST_NAME).read_text())
    data["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    (other / MANIFEST_NAME).write_text(json.dumps(data))
    check_files, opened = Bundle.check_files, list[str]()

    def replace_first(self: Bundle) -> None:
        # The manifest is read by now, the files are not.
        if not opened:
            bundle.rename(bundle.with_name("old"))
            other.rename(bundle)
        opened.append(self.digest)
        check_files(self)

    monkeypatch.setattr(Bundle, "check_files", replace_first)
    assert Bundle.open(bundle).manifest.files[name].sha256 == data["files"][name]["sha256"]
    assert len(opened) == 2
