"""The child process: what ends it, what it says, and what it took."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from consisti2v_rt.benchmarks.bench import worker as module
from consisti2v_rt.benchmarks.bench.machine import describe_machine, own_peak_bytes, processor_flags, versions
from consisti2v_rt.benchmarks.bench.worker import WorkerProcess, WorkFailedError


def video(bundle: Path, photo: Path) -> dict[str, object]:
    return {
        "target": "video",
        "bundle": str(bundle),
        "backend": "onnxruntime-cpu",
        "precision": "fp32",
        "image": str(photo),
        "prompt": "",
        "options": {"num_inference_steps": 1},
        "threads": 1,
    }


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if "bench.worker" in " ".join(process.cmdline())]


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process with another code")
def test_a_process_that_is_killed_says_so(demo_bundle: Path, photo: Path) -> None:
    with WorkerProcess(video(demo_bundle, photo)) as worker:
        (child,) = children()
        child.kill()
        with pytest.raises(WorkFailedError, match="not enough memory"):
            worker.ask("load")
    assert children() == []


@pytest.mark.slow
def test_a_failure_is_told_and_the_process_stays_usable(demo_bundle: Path, tmp_path: Path) -> None:
    with WorkerProcess(video(demo_bundle, tmp_path / "none.jpg")) as worker:
        for _ in range(2):
            with pytest.raises(WorkFailedError, match=r"none\.jpg"):
                worker.ask("load")


def test_files_of_the_working_directory_are_not_run(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess(video(demo_bundle, tmp_path)) as worker:
        assert worker.ask("peak") > 0
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("line", ["a banner\\n", "[1]\\n"])
def test_a_line_that_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "stand_in.py").write_text(f"print('{line}', end='', flush=True)")
    real, command = subprocess.Popen, [sys.executable, str(tmp_path / "stand_in.py")]
    monkeypatch.setattr(module.subprocess, "Popen", lambda _, **options: real(command, **options))
    with pytest.raises(WorkFailedError, match="in place of an answer"):
        WorkerProcess(video(tmp_path, tmp_path))


@pytest.mark.slow
def test_memory_progress_and_end(demo_bundle: Path, photo: Path) -> None:
    shares: list[float] = []
    with WorkerProcess(video(demo_bundle, photo)) as worker:
        assert worker.start_seconds > 0 and worker.ask("load")["seconds"] > 0
        worker.ask("run", shares.append, number=0)
        assert len(children()) == 1
    assert shares == [1.0] and children() == []
    # NumPy and ONNX Runtime with a model; this process, which may hold torch, is not counted.
    assert 40 * 2**20 < worker.host_peak_bytes < 2**30
    assert worker.device_peak_bytes is None or worker.device_peak_bytes >= 0


def test_the_high_water_mark_stays() -> None:
    before = own_peak_bytes()
    block = bytearray(os.urandom(2**20) * 64)
    risen = own_peak_bytes()
    del block
    assert own_peak_bytes() >= risen > before - 1 and risen > 64 * 2**20


def test_the_machine_without_its_names() -> None:
    machine = describe_machine()
    assert machine["cpu"] and machine["usable_cores"] >= 1 and machine["memory_bytes"] > 2**28
    known = {"cpu", "architecture", "physical_cores", "logical_cores", "usable_cores", "instruction_sets"}
    assert set(machine) == known | {"memory_bytes", "system", "gpus"}
    assert set(processor_flags()) == set(machine["instruction_sets"])
    assert re.fullmatch(r"3\.\d+\.\d+\S*", versions()["python"]) and "onnxruntime" in versions()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="elsewhere a worker sees its parent's end between two requests alone")
def test_a_busy_worker_ends_with_its_killed_parent():
    busy = (
        "import time; from consisti2v_rt.benchmarks.bench.worker import end_with_parent; "
        "end_with_parent(); print('busy', flush=True); time.sleep(300)"
    )
    starter = (
        "import subprocess, sys, time; "
        f"print(subprocess.Popen([sys.executable, '-c', {busy!r}]).pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    assert parent.stdout.readline() == "busy\n" and worker.is_running()
    parent.kill()
    parent.wait()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
