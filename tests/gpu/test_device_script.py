"""``benchmarks/device.sh``: every part is recorded as ran or refused with its words, whatever the others did."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.device import __main__ as script
from consisti2v_rt.benchmarks.device.__main__ import Record
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu.device import probe

ROOT = Path(__file__).parents[2]


def refuse() -> None:
    raise UserError("compute capability 9.0 is not supported.")


def fail() -> None:
    raise RuntimeError("the driver went away")


def late() -> None:
    raise subprocess.TimeoutExpired(["python"], 30)


def test_the_record_says_what_became_of_every_part(tmp_path):
    path = tmp_path / "device.json"
    record = Record(path, 60)
    for name, work in (("one", lambda: 5), ("two", refuse), ("three", fail), ("four", late)):
        record.part(name, work)
    held = json.loads(path.read_text())
    assert [entry["status"] for entry in held.values()] == ["ran", "refused", "failed", "failed"]
    assert held["one"]["result"] == 5
    assert held["two"]["reason"] == "compute capability 9.0 is not supported."
    assert held["three"]["reason"] == "RuntimeError: the driver went away"
    assert held["four"]["reason"] == "stopped after 30 s"
    assert record.without_result() == {"two": "refused", "three": "failed", "four": "failed"}
    ended = Record(tmp_path / "late.json", -1)
    ended.part("five", fail)
    assert ended.parts["five"]["status"] == "skipped"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device.json", "late.json"]


def test_a_run_goes_on_where_the_last_one_ended(tmp_path):
    path = tmp_path / "device.json"
    first = Record(path, 60)
    for name, work in (("one", lambda: 5), ("two", refuse), ("three", fail)):
        first.part(name, work)
    second = Record(path, 60, resume=True)
    for name in ("one", "two"):
        second.part(name, fail)
    second.part("three", lambda: 7)
    assert second.parts["one"]["result"] == 5
    assert second.parts["three"]["result"] == 7, "what failed is tried again"
    second.part("one", lambda: 6, again=True)
    assert second.parts["one"]["result"] == 6
    assert second.without_result() == {"two": "refused"}
    assert Record(path, 60).parts == {}
    path.write_text('{"one": 1}')
    with pytest.raises(UserError, match="is no record of a device run"):
        Record(path, 60, resume=True)


@pytest.mark.rare
@pytest.mark.skipif(probe().found, reason="this machine has a GPU: pytest -m gpu is the test there")
def test_without_a_gpu_every_part_says_why(demo_bundle, tmp_path):
    """The script itself, in processes; what is left out here takes long to say no."""
    output = tmp_path / "device.json"
    asked = ["machine", "parity", "video", "device noise", "bench", "kernels"]
    command = [sys.executable, "-m", "consisti2v_rt.benchmarks.device", "--bundle", str(demo_bundle)]
    done = subprocess.run(
        [*command, "--output", str(output), "--work", str(tmp_path / "work"), "--only", *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 1 and done.stderr == "", done.stderr
    parts = json.loads(output.read_text())
    assert list(parts) == asked
    assert parts["machine"]["status"] == "ran"
    assert any(line.startswith("verdict: ") for line in parts["machine"]["result"])
    refused = {name: entry["reason"] for name, entry in parts.items() if entry["status"] == "refused"}
    assert refused.keys() == set(asked) - {"machine"}, parts
    assert all(reason.endswith(".") and "Traceback" not in reason for reason in refused.values()), refused
    assert "parity: refused" in done.stdout and "6 parts, 5 without a result" in done.stdout


def test_every_part_names_a_test_that_is_there():
    text = (ROOT / "tests" / script.BUNDLE_TESTS).read_text()
    named = {name.partition("[")[0] for name in script._TESTS.values()}
    assert named == set(re.findall(r"@pytest\.mark\.gpu\n(?:@[^\n]*\n|    [^\n]*\n|\)\n)*def (\w+)\(", text))


def test_the_parts_that_run_other_programs(tmp_path, monkeypatch):
    """A refusal is code 2 and a sentence; anything else that goes wrong is a failure; skipped tests are no success."""
    record = Record(tmp_path / "device.json", 60)
    answers: list[tuple[int, str, str, str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        *answer, cases = answers.pop(0)
        for word in command:
            if word.startswith("--junitxml=") and cases:
                suite = f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
                Path(word.partition("=")[2]).write_text(suite)
        return subprocess.CompletedProcess(command, *answer)

    monkeypatch.setattr(script.subprocess, "run", run)
    answers[:] = [(2, "", "warning\nerror: There is no GPU here.\n", ""), (1, "", "Segmentation fault", "")]
    with pytest.raises(UserError, match=r"^There is no GPU here\.$"):
        script.command(["module"], record, tmp_path / "command.json")
    with pytest.raises(RuntimeError, match="exit code 1: Segmentation fault"):
        script.command(["module"], record, tmp_path / "command.json")

    passed = (
        '<testcase classname="a" name="b" time="1.5"><properties><property name="unet" value="[1, 2]"/></properties>'
        "</testcase>"
    )
    skipped = '<testcase classname="a" name="c" time="0"><skipped message="needs a GPU."/></testcase>'
    failed = '<testcase classname="a" name="d" time="0"><failure message="assert 0"/></testcase>'
    answers[:] = [(0, "", "", skipped * 2), (1, "1 failed", "", passed + failed), (3, "crash", "", "")]
    tests = ROOT / "tests"
    with pytest.raises(UserError, match=r"^every test was skipped: needs a GPU\.$"):
        script.run_tests(tests, [], tmp_path, record)
    with pytest.raises(RuntimeError, match="1 failed"):
        script.run_tests(tests, [], tmp_path, record)
    with pytest.raises(RuntimeError, match="ended with 3: crash"):
        script.run_tests(tests, [], tmp_path, record)
    answers[:] = [(0, "", "", passed + skipped)]
    found = script.run_tests(tests, [], tmp_path, record)
    assert found["a.b"] == {"outcome": "passed", "seconds": 1.5, "unet": [1, 2]}
    assert found["a.c"]["outcome"] == "skipped"
    with pytest.raises(UserError, match="has no tests"):
        script.run_tests(tmp_path / "tests", [], tmp_path, record)


@pytest.mark.slow
def test_parts_run_no_file_of_the_working_directory(tmp_path, demo_bundle, monkeypatch):
    (tmp_path / "random.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    record = Record(tmp_path / "device.json", 60)
    found = script.command(["consisti2v_rt", "doctor", "--bundle", str(demo_bundle)], record)
    assert found and not (tmp_path / "was_run").exists()


def test_a_copy_is_kept_until_the_bundle_is_another(demo_bundle, tmp_path):
    source = Path(shutil.copytree(demo_bundle, tmp_path / "from" / "bundle"))
    copy = script.bundle_copy(source, tmp_path / "to")
    (copy / "engines").mkdir()
    assert script.bundle_copy(source, tmp_path / "to") == copy and (copy / "engines").exists()
    text = (source / "bundle.json").read_text()
    digest = Bundle.open(source).manifest.files["unet/unet.onnx"].sha256
    (source / "bundle.json").write_text(text.replace(digest, "0" * 64))
    script.bundle_copy(source, tmp_path / "to")
    assert not (copy / "engines").exists() and len(list(copy.rglob("*.onnx"))) == 5
