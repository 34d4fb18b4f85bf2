"""Locks between processes and threads, the lock of a bundle, and what killed builds left."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from consisti2v_rt.errors import UserError
from consisti2v_rt.export import bundle_lock
from consisti2v_rt.export.bundle_lock import BUILD_LOCK, building, remove_abandoned_export
from consisti2v_rt.export.bundle_parts import rewrite_manifest
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import Manifest
from consisti2v_rt.runtime.bundle.replaced_folder import recover_replaced
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.files import file_lock
from consisti2v_rt.runtime.files.file_lock import locked

HOLD = (
    "import sys, time; from pathlib import Path; from consisti2v_rt.runtime.files.file_lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def small_bundle(tmp_path: Path, demo_bundle: Path) -> Path:
    """A manifest alone."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes((demo_bundle / MANIFEST_NAME).read_bytes())
    return folder


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds a lock file."""
    started: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_held_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with locked(path):
            assert path.read_text() == f"{os.getpid()} {platform.node()}"
        assert not path.exists()


@pytest.mark.slow
def test_a_killed_process_holds_nothing(tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]) -> None:
    """The second waits for the first, is told for whom once, and goes on when that one is killed."""
    other, told = holder(tmp_path / "lock"), []
    killer = threading.Timer(0.5, other.kill)
    killer.start()
    started = time.monotonic()
    with locked(tmp_path / "lock", told.append):
        assert 0.4 < time.monotonic() - started < 30
    assert told == [f"process {other.pid}"]


def test_a_holder_in_another_container_is_named_with_it(
    tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers share process numbers."""
    other, told = holder(tmp_path / "lock"), []
    killer = threading.Timer(0.3, other.kill)
    killer.start()
    here = platform.node()
    monkeypatch.setattr(file_lock.platform, "node", lambda: "elsewhere")
    with locked(tmp_path / "lock", told.append):
        assert told == [f"process {other.pid} on {here}"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such links without privileges, and no FIFO")
def test_a_lock_file_that_is_a_link_or_no_file_is_refused(tmp_path: Path) -> None:
    """A bundle from elsewhere may hold one; what it leads to is not written to."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(OSError), locked(tmp_path / name):
            pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with locked(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_ctrl_c_ends_the_wait(tmp_path: Path, holder: Callable[[Path], subprocess.Popen[str]]) -> None:
    holder(tmp_path / "lock")
    code = (
        "import signal, sys; from pathlib import Path; from consisti2v_rt.runtime.files.file_lock import locked\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n with locked(Path(sys.argv[1]), lambda holder: print(holder, flush=True)): print('got it')\n"
        "except KeyboardInterrupt: print('left')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    waiter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert waiter.stdout is not None and waiter.stdout.readline().startswith("process ")
    waiter.send_signal(signal.SIGINT)
    assert waiter.communicate(timeout=20)[0] == "left\n" and (tmp_path / "lock").exists()


def test_a_bundle_is_held_once_by_a_thread_and_told_to_the_next(small_bundle: Path) -> None:
    told: list[str] = []
    with building(small_bundle), building(small_bundle):
        assert (small_bundle / BUILD_LOCK).is_file()
        other = threading.Thread(target=lambda: building(small_bundle, told.append).__enter__())
        other.start()
        while not told:
            time.sleep(0.01)
    other.join()
    (line,) = told
    assert line.startswith(f"waiting for process {os.getpid()}, which is writing to {small_bundle}")


def test_a_bundle_that_cannot_be_written_to_needs_no_lock(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, listing: Callable[[Path], dict[str, int]]
) -> None:
    before = listing(small_bundle)

    def read_only(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(file_lock, "_open", read_only)
    monkeypatch.setattr(bundle_lock.os, "access", lambda path, mode: False)
    with building(small_bundle):
        assert listing(small_bundle) == before


@pytest.mark.slow
def test_changes_of_the_manifest_at_once_are_all_kept(small_bundle: Path) -> None:
    """Four processes, each adding ten tools: read, changed and replaced without a lock, some would be lost."""
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from consisti2v_rt.export.bundle_parts import rewrite_manifest\n"
        "def add(name): return lambda m: replace(m, provenance=replace(m.provenance, tools=m.provenance.tools | "
        "{name: '1'}))\n"
        "for i in range(10): rewrite_manifest(Path(sys.argv[1]), add(f'{sys.argv[2]}{i}'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(small_bundle), letter]) for letter in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    tools = Manifest.from_json((small_bundle / MANIFEST_NAME).read_text()).provenance.tools
    assert {f"{letter}{i}" for letter in "abcd" for i in range(10)} <= tools.keys()
    assert [path.name for path in small_bundle.iterdir()] == [MANIFEST_NAME]


# -- what killed builds left -------------------------------------------------------------------------------------------


def leave(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "plan").write_bytes(b"half")
    return path


def test_a_build_removes_what_killed_ones_left(small_bundle: Path) -> None:
    """Whatever number their process had: who has the lock is alone."""
    gone = [leave(small_bundle / place) for place in (".engines.partial", ".variants.partial")]
    kept = [leave(small_bundle.parent / ".bundle.partial"), leave(small_bundle / "engines/sm89")]
    manifest = small_bundle / f".{MANIFEST_NAME}.partial"
    manifest.write_text("half")
    with building(small_bundle):
        assert not any(path.exists() for path in (*gone, manifest)) and all(path.exists() for path in kept)


@pytest.mark.slow
def test_a_running_build_keeps_its_folder(small_bundle: Path) -> None:
    """A second build, with whatever process number, waits: the folder of the first is there all the time."""
    code = (
        "import sys, time; from pathlib import Path; from consisti2v_rt.export.bundle_lock import building\n"
        "with building(Path(sys.argv[1])):\n"
        "    (Path(sys.argv[1]) / '.engines.partial').mkdir(parents=True); print('held', flush=True)\n"
        "    time.sleep(1); assert (Path(sys.argv[1]) / '.engines.partial').is_dir()"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(small_bundle)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    told: list[str] = []
    with building(small_bundle, told.append):
        assert first.wait(30) == 0 and not (small_bundle / ".engines.partial").exists()
    assert len(told) == 1


def test_an_export_removes_its_own_and_keeps_the_only_bundle(tmp_path: Path) -> None:
    partial, old, other = (leave(tmp_path / name) for name in (".new.partial", ".new.replaced", ".other.partial"))
    remove_abandoned_export(tmp_path / "new")
    assert not partial.exists() and old.exists() and other.exists()
    (tmp_path / "new").mkdir()
    remove_abandoned_export(tmp_path / "new")
    assert not old.exists()


def test_a_kill_while_the_old_bundle_is_removed_leaves_none_to_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path / ".new.replaced")
    (tmp_path / "new").mkdir()

    def killed(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_abandoned_export(tmp_path / "new")
    (tmp_path / "new").rmdir()
    recover_replaced(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_link_is_removed_and_not_what_it_leads_to(small_bundle: Path, tmp_path: Path) -> None:
    elsewhere = leave(tmp_path / "elsewhere")
    (small_bundle / ".engines.partial").symlink_to(elsewhere)
    (small_bundle / f".{MANIFEST_NAME}.partial").symlink_to(elsewhere / "plan")
    rewrite_manifest(small_bundle, lambda manifest: replace(manifest, name="changed"))
    assert [path.name for path in small_bundle.iterdir()] == [MANIFEST_NAME] and (
        elsewhere / "plan"
    ).read_bytes() == b"half"


@pytest.mark.parametrize("place", ["engines", "engines/sm89", "variants/fp16/unet"])
def test_a_build_follows_no_link_out_of_the_bundle(small_bundle: Path, tmp_path: Path, place: str) -> None:
    elsewhere = leave(tmp_path / "elsewhere" / ".sm89.partial").parent
    (small_bundle / place).parent.mkdir(parents=True, exist_ok=True)
    (small_bundle / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{place} is a link to outside"), building(small_bundle):
        pass
    assert (elsewhere / ".sm89.partial" / "plan").exists()


def test_a_lock_is_not_part_of_a_bundle(tmp_path: Path, demo_bundle: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with building(bundle):
        opened = Bundle.open(bundle)
        opened.verify()
        assert (bundle / BUILD_LOCK).is_file() and BUILD_LOCK not in opened.manifest.files
    assert not (bundle / BUILD_LOCK).exists()
