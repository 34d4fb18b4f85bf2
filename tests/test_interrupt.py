"""Ctrl-C and the like: a clean end with exit code 128 + signal and nothing half-written, wherever they fall."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.errors import CancelledError
from consisti2v_rt.runtime.commands.ending_signals import ENDING_SIGNALS, ending_signals
from consisti2v_rt.runtime.request.settings import StepProgress
from consisti2v_rt.runtime.session import OnnxCpuSession

STOPPED = "stopped; nothing half-written is left"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child and no pseudo-terminal"),
]


class OnTerminal:
    """A command whose standard error is a terminal, as a user sees it."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "consisti2v_rt", *arguments]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=theirs, env=environment)
        os.close(theirs)
        self.screen = ""

    def read_until(self, pattern: str, seconds: float) -> None:
        """Collect what is shown until `pattern` is."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.screen):
            assert time.monotonic() < end, f"{pattern!r} was not shown in {seconds} s: {self.screen!r}"
            assert self._read(1.0) or self.process.poll() is None, f"it ended without {pattern!r}: {self.screen!r}"

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

    def interrupt(self, seconds: float, number: int = signal.SIGINT) -> float:
        """Press Ctrl-C, or send another signal, and wait for the end; returns how long that took."""
        started = time.monotonic()
        self.process.send_signal(number)
        while self.process.poll() is None:
            assert time.monotonic() - started < seconds, f"still running {seconds} s after {number}: {self.screen!r}"
            self._read(0.05)
        took = time.monotonic() - started
        while self._read(0.2):
            pass
        return took

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._ours)

    @property
    def lines(self) -> list[str]:
        """What was shown, without the terminal's control sequences."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.screen)
        return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def on_terminal(tmp_path):
    started: list[OnTerminal] = []

    def start(*arguments: object) -> OnTerminal:
        started.append(OnTerminal([str(argument) for argument in arguments], tmp_path))
        return started[-1]

    yield start
    for command in started:
        command.close()


def test_ctrl_c_during_generation(on_terminal, tmp_path, demo_bundle, photo):
    command = on_terminal("generate", "--bundle", demo_bundle, "--image", photo, "--steps", 900, "--output", "out.mp4")
    command.read_until(r"\b1/900", 60)
    command.interrupt(15)
    assert command.process.returncode == 130
    assert command.lines[-1] == STOPPED and "Traceback" not in command.screen
    assert command.screen.count("\x1b[?25l") == command.screen.count("\x1b[?25h"), "the cursor stays hidden"
    assert command.process.stdout.read() == b"" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_other_signals_end_a_generation_too(on_terminal, tmp_path, demo_bundle, photo, number):
    command = on_terminal("generate", "--bundle", demo_bundle, "--image", photo, "--steps", 900, "--output", "out.mp4")
    command.read_until(r"\b1/900", 60)
    command.interrupt(15, number)
    assert command.process.returncode == 128 + number
    assert command.lines[-1] == STOPPED and "Traceback" not in command.screen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rare
def test_a_closed_terminal_ends_an_export(on_terminal, tmp_path, demo_bundle):
    """Its last words are heard by nobody; the half-written bundle goes all the same."""
    pytest.importorskip("torch")
    command = on_terminal("export", "--random-weights", "tiny", "--height", 64, "--width", 64, "--output", "bundle")
    command.read_until(r"text_encoder +[\d.]+ s", 120)
    assert any(path.name.startswith(".bundle.partial") for path in tmp_path.iterdir())
    os.close(command._ours)
    command.process.send_signal(signal.SIGHUP)
    assert command.process.wait(20) == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []
    command._ours = os.open(os.devnull, os.O_RDONLY)


def test_an_ignored_signal_stays_ignored():
    """As ``nohup`` leaves it; and a second one does not disturb the end."""
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    ignored, taken = signal.SIGHUP, signal.SIGTERM
    signal.signal(ignored, signal.SIG_IGN)
    try:
        with ending_signals() as ending:
            os.kill(os.getpid(), ignored)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), taken)
                time.sleep(10)
            os.kill(os.getpid(), taken)
            assert ending.exit_code == 143 and signal.getsignal(taken) == signal.SIG_IGN
        assert signal.getsignal(taken) == before[taken] and signal.getsignal(ignored) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.rare
def test_ctrl_c_during_export(on_terminal, tmp_path, demo_bundle, listing):
    """Over an existing bundle, which stays as it was."""
    pytest.importorskip("torch")
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    before = listing(tmp_path)
    command = on_terminal("export", "--random-weights", "tiny", "--height", 64, "--width", 64, "--output", "bundle")
    command.read_until(r"text_encoder +[\d.]+ s", 120)
    assert any(path.name.startswith(".bundle.partial") for path in tmp_path.iterdir())
    command.interrupt(15)
    assert command.process.returncode == 130
    assert command.lines[-1] == STOPPED and "Traceback" not in command.screen
    assert listing(tmp_path) == before


@pytest.mark.parametrize("run", [1, 4, 6, 20], ids=["image encoder", "first step", "third step", "decoder"])
def test_ctrl_c_in_every_stage(consisti2v, tmp_path, demo_bundle, photo, monkeypatch, run):
    """Stages run in the order image, two texts with their conditioning, steps, frames."""
    runs: list[str] = []
    real = OnnxCpuSession.run

    def interrupted(session: OnnxCpuSession) -> None:
        runs.append("")
        if len(runs) == run:
            raise KeyboardInterrupt
        real(session)

    monkeypatch.setattr(OnnxCpuSession, "run", interrupted)
    (tmp_path / "out.mp4").write_bytes(b"an older video")
    options = ["--image", photo, "--steps", 3, "--output", tmp_path / "out.mp4"]
    outcome = consisti2v("generate", "--bundle", demo_bundle, *options)
    assert len(runs) == run and outcome.code == 130 and outcome.stdout == ""
    assert outcome.stderr.splitlines()[-1] == STOPPED and "Traceback" not in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older video"


@pytest.mark.parametrize("delay", [0, 0.05], ids=["between two runs", "within a run"])
def test_a_call_is_stopped_from_another_thread(demo_bundle, photo, delay):
    """What Ctrl-C does inside a step: the graph ends at its next operation, not the step at its end."""
    animate = ImageToVideo.from_bundle(demo_bundle)
    steps = []

    def stop_first(progress: StepProgress) -> None:
        steps.append(progress.step)
        stopper = threading.Timer(delay, animate.cancel)
        stopper.start()
        if not delay:
            stopper.join()

    with pytest.raises(CancelledError):
        animate(photo, num_inference_steps=900, callback=stop_first)
    assert len(steps) <= 2
    assert animate(photo, num_inference_steps=1, seed=0).frames.any(), "a stopped model must be usable again"


@pytest.mark.parametrize("existing", [True, False], ids=["over a bundle", "new"])
def test_a_failed_export_leaves_what_was_there(consisti2v, tmp_path, demo_bundle, listing, monkeypatch, existing):
    pytest.importorskip("torch")
    from consisti2v_rt.export import bundle_writer

    def half(stage: object, path: Path, *arguments: object) -> None:
        path.parent.mkdir()
        path.write_bytes(b"half a graph")
        raise UserError("the graph cannot be written.")

    monkeypatch.setattr(bundle_writer, "write_graph", half)
    if existing:
        shutil.copytree(demo_bundle, tmp_path / "bundle")
    before = listing(tmp_path)
    outcome = consisti2v("export", "--random-weights", "tiny", "--output", tmp_path / "bundle")
    assert outcome.code == 2 and outcome.stdout == "" and "Traceback" not in outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "error: the graph cannot be written."
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", ["-m consisti2v_rt", "-c import consisti2v_rt.entry as e; e.main()"])
def test_ctrl_c_while_the_program_is_imported(tmp_path, command):
    """A module that the command line imports first raises what Ctrl-C does, and again as a signal of its own."""
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    flag, argument = command.split(" ", 1)
    done = subprocess.run(
        [sys.executable, flag, argument],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        # A shell's background job ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{STOPPED}\n")
