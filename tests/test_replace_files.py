"""Files that are replaced together: all new, or all old; links are written through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.files.replace_files import destination, replacing
from consisti2v_rt.runtime.media.video_file import check_output, save_frames, streaming

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and signals as on POSIX")


def pictures(count: int = 5, level: int = 200) -> np.ndarray:
    return np.full((count, 20, 20, 3), level, np.uint8)


def series(folder: Path, count: int = 5) -> dict[str, bytes]:
    """An earlier series, of which picture 1 is missing."""
    for index in range(count):
        if index != 1:
            (folder / f"out-{index:03d}.png").write_bytes(f"old {index}".encode())
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def fail_at(monkeypatch, call: int, action) -> None:
    """Do `action` in place of the rename number `call`, counted from 1; others are renamed."""
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == call:
            action()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def no_space() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", [1, 3, 5])
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_a_failing_rename_leaves_every_old_picture(tmp_path, monkeypatch, call, links):
    before = series(tmp_path)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: no_space())
    fail_at(monkeypatch, call, no_space)
    with pytest.raises(UserError, match="could not be written"):
        save_frames(pictures(), tmp_path / "out.png")
    assert content(tmp_path) == before


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_renames_leaves_every_old_picture(tmp_path, monkeypatch, call, number):
    """Also a second one while the old ones are restored."""
    before = series(tmp_path)
    previous = signal.signal(number, signal.default_int_handler)
    try:
        fail_at(monkeypatch, call, lambda: [os.kill(os.getpid(), number) for _ in range(2)])
        with pytest.raises(KeyboardInterrupt):
            save_frames(pictures(), tmp_path / "out.png")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, previous)
    assert content(tmp_path) == before


def test_a_name_that_is_taken_by_a_folder_meanwhile_leaves_every_old_picture(tmp_path):
    before = series(tmp_path)
    targets = [tmp_path / f"out-{index:03d}.png" for index in range(5)]
    with pytest.raises(OSError), replacing(targets) as new:
        for file in new:
            file.write_bytes(b"new")
        targets[1].mkdir()
    assert content(tmp_path) == before
    with pytest.raises(UserError, match="is a folder"):
        save_frames(pictures(), tmp_path / "out.png")


def test_a_series_is_replaced_and_nothing_else_stays(tmp_path, caplog):
    series(tmp_path, 8)
    written = save_frames(pictures(), tmp_path / "out.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert sorted(content(tmp_path)) == [f"out-{index:03d}.png" for index in range(8)]
    assert (tmp_path / "out-007.png").read_bytes() == b"old 7"
    assert 'out-005.png" to "out-007.png" of an earlier, longer series' in caplog.text


def test_old_content_that_cannot_be_restored_is_kept_and_named(tmp_path, monkeypatch):
    series(tmp_path)
    real = Path.replace

    def replace(self, target):
        if self.name.endswith("out-004.png") or ".old." in self.name:
            no_space()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UserError, match=r"3 earlier files could not be restored .*\.old\.out-000\.png"):
        save_frames(pictures(), tmp_path / "out.png")
    kept = {path.name.split(".old.")[1]: path.read_bytes() for path in tmp_path.glob(".consisti2v-*.old.*")}
    assert kept == {f"out-{index:03d}.png": f"old {index}".encode() for index in (0, 2, 3)}


def test_a_kill_leaves_names_that_say_what_they_are(tmp_path):
    before = series(tmp_path)
    program = (
        "import os, pathlib; from consisti2v_rt.runtime.files.replace_files import replacing\n"
        "targets = [pathlib.Path(f'out-{i:03d}.png') for i in range(5)]\n"
        "real, calls = pathlib.Path.replace, []\n"
        "def replace(self, target):\n"
        "    calls.append(target)\n"
        "    return os._exit(9) if len(calls) == 3 else real(self, target)\n"
        "pathlib.Path.replace = replace\n"
        "with replacing(targets) as new: [file.write_bytes(b'new') for file in new]\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60).returncode == 9
    kept = {path.name.split(".old.")[1]: path.read_bytes() for path in tmp_path.glob(".consisti2v-*.old.*")}
    assert kept == before


def test_a_save_in_another_thread(tmp_path):
    before = series(tmp_path)
    thread = threading.Thread(target=save_frames, args=(pictures(), tmp_path / "out.png"))
    thread.start()
    thread.join()
    assert content(tmp_path).keys() == before.keys() | {"out-001.png"} and content(tmp_path) != before


# -- symbolic links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [True, False], ids=["to a file", "dangling"])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_link_is_written_through(tmp_path, existing, suffix):
    (tmp_path / "real").mkdir()
    real, link, chain = tmp_path / "real" / "video.bin", tmp_path / f"out{suffix}", tmp_path / f"again{suffix}"
    if existing:
        real.write_bytes(b"old")
    link.symlink_to(Path("real") / "video.bin")
    chain.symlink_to(link.name)
    assert save_frames(pictures(), chain) == [chain]
    assert link.is_symlink() and chain.is_symlink() and not real.is_symlink()
    assert real.stat().st_size > 20 and real.read_bytes() != b"old"
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["video.bin"]
    streamed = real.read_bytes()
    with streaming([link], 1, 5, 8) as (stream, _):
        stream.on_frames(0, 0, pictures())
    assert link.is_symlink() and real.read_bytes() == streamed


def test_links_that_cannot_be_written_through_are_refused(tmp_path):
    loop, other = tmp_path / "loop.mp4", tmp_path / "other.mp4"
    loop.symlink_to(other)
    other.symlink_to(loop)
    lost = tmp_path / "lost.mp4"
    lost.symlink_to(tmp_path / "missing" / "video.mp4")
    device = tmp_path / "device.mp4"
    device.symlink_to(os.devnull)
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, said in (
        (loop, "cannot be followed"),
        (lost, "does not exist"),
        (device, "is no regular file"),
        (tmp_path / "pipe.mp4", "is no regular file"),
        (tmp_path / "nul\0.mp4", "is no possible file name"),
    ):
        for refuse in (check_output, lambda path: save_frames(pictures(), path)):
            with pytest.raises(UserError, match=said):
                refuse(path)
    assert loop.is_symlink() and device.is_symlink() and Path(os.devnull).is_char_device()


def test_two_names_of_one_file_are_refused(tmp_path):
    (tmp_path / "out-001.png").symlink_to("out-000.png")
    with pytest.raises(UserError, match="are the same file"):
        save_frames(pictures(), tmp_path / "out.png")
    assert not (tmp_path / "out-000.png").exists()


def test_destination_of_a_plain_name_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert destination(Path("new.mp4")) == Path("new.mp4")
    assert destination(Path("x" * 240 + ".mp4")).name == "x" * 240 + ".mp4"
    (written,) = save_frames(pictures(), "\u00e9" * 120 + ".mp4")
    assert written.is_file()
