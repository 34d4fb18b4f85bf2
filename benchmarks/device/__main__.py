"""Everything that needs an NVIDIA GPU, in one go, into one JSON.

``benchmarks/device.sh --wheels FOLDER --output device.json`` from a checkout. Each part is a command in a process of
its own, with a time of its own: a crash or a hang of a library ends that part alone. The record says of each: ran (with
its result), refused (in one sentence), failed or skipped. Where time ends before the parts do, ``--resume`` goes on in
the same record.

Parts: install; machine (``consisti2v doctor``); the tests marked ``gpu`` of ``tests/gpu/test_bundle_on_gpu.py``, one
part each, on one copy of the bundle that collects engines; tests (all others marked ``gpu``); bench (``consisti2v
bench``); kernels (the temporal attention beside an engine's).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import UserError
from ...locations import ROOT
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.home import find_bundle
from ...runtime.child_process import neutral_place
from ...runtime.commands.console import PlainParser, plain, print_error
from ...runtime.files.guarded_read import RECORD, read_json
from ...runtime.files.replace_files import replacing

WORK_BUNDLE = "CONSISTI2V_DEVICE_BUNDLE"
"""Environment variable: the bundle that the tests build into, so that a later part finds what an earlier one built."""
BUNDLE_TESTS = Path("gpu") / "test_bundle_on_gpu.py"
_PLAIN = ("parity", "video", "device noise", "inspector", "compare", "stripped")
_TESTS = {
    **{f"engine for {target}": f"test_engine[{target}]" for target in ("current", "rtx", "sm80")},
    **{name: f"test_{name.replace(' ', '_')}" for name in _PLAIN},
    **{f"calibrated {kind}": f"test_calibrated[{kind}]" for kind in ("int8", "fp8")},
}
_PARTS = dict.fromkeys(name.partition(" for ")[0] for name in _TESTS)
GROUPS = ("install", "machine", *_PARTS, "tests", "bench", "kernels")
"""What ``--only`` may name."""
_MOST = 240.0
"""Seconds of one part."""


RAN, REFUSED, FAILED, SKIPPED = "ran", "refused", "failed", "skipped"
"""Status of a part: it has a result; it is not possible here, with the reason; it failed; it was not begun."""


class Record:
    """One JSON file, rewritten whole after every part.

    Args:
        path: the file.
        seconds: time for the whole run; a part that would begin after it is skipped, and said to be.
        resume: parts that an earlier run has in this file keep their results; those it skipped are made now.

    Raises:
        UserError: a file to resume that is no such record.
    """

    def __init__(self, path: Path, seconds: float, *, resume: bool = False) -> None:
        self._path, self._until = path, time.monotonic() + seconds
        self.parts: dict[str, dict[str, Any]] = {}
        if resume and path.exists():
            try:
                self.parts = dict(read_json(path, RECORD("give another --output")))
                if not all(entry["status"] in (RAN, REFUSED, FAILED, SKIPPED) for entry in self.parts.values()):
                    raise ValueError("a part without status")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is no record of a device run ({error}): give another --output.") from None

    @property
    def part_seconds(self) -> float:
        """Time for a part that begins now."""
        return max(1.0, min(_MOST, self._until - time.monotonic()))

    def part(self, name: str, work: Callable[[], Any], *, again: bool = False) -> None:
        """Run a part; its result, or the words that ended it, is in the file when this returns.

        Args:
            work: its result is what JSON can hold. A UserError is a refusal, and a finding: what refused, in which
                words.
            again: also where an earlier run has its result.
        """
        if self.parts.get(name, {}).get("status") in (RAN, REFUSED) and not again:
            return
        started = time.monotonic()
        try:
            if started >= self._until:
                entry: dict[str, Any] = {"status": SKIPPED, "reason": "no time was left"}
            else:
                entry = {"status": RAN, "result": work()}
        except UserError as refusal:
            entry = {"status": REFUSED, "reason": str(refusal)}
        except subprocess.TimeoutExpired as late:
            entry = {"status": FAILED, "reason": f"stopped after {late.timeout:.0f} s"}
        except Exception as error:
            entry = {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}
        self.parts[name] = {**entry, "seconds": round(time.monotonic() - started, 3)}
        with replacing([self._path]) as (new,):
            new.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")

    def without_result(self) -> dict[str, str]:
        """part -> what became of it, of those that gave no result."""
        return {name: entry["status"] for name, entry in self.parts.items() if entry["status"] != RAN}


def main() -> int:
    """Run the parts; 0 where every one gave a result."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels; what is missing is installed from it")
    parser.add_argument("--site", type=Path, help="folder to install into; a temporary one if absent")
    parser.add_argument("--work", type=Path, help="folder for the bundle with its engines; a temporary one if absent")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout, for its tests")
    parser.add_argument("--bundle", type=Path, default=ROOT / "assets" / "demo_bundle", help="bundle to run")
    parser.add_argument("--output", type=Path, default=Path("device.json"), help="the record")
    parser.add_argument("--seconds", type=float, default=540, help="time for everything")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="PART", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--resume", action="store_true", help="keep the results that --output has, make the others")
    arguments = parser.parse_args()
    try:
        record = Record(arguments.output, arguments.seconds, resume=arguments.resume)
        _run_all(arguments, record)
    except UserError as error:
        print_error(error)
        return 2
    missing = record.without_result()
    print(f"{plain(arguments.output)}: {len(record.parts)} parts, {len(missing)} without a result")
    for name, status in missing.items():
        print(plain(f"  {name}: {status}, {record.parts[name]['reason'][:300]}"))
    return 1 if missing else 0


def _run_all(arguments: argparse.Namespace, record: Record) -> None:
    with ExitStack() as stack:
        # Absolute: the parts work in another folder.
        work = (arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        work.mkdir(parents=True, exist_ok=True)
        site = arguments.site or work / "site"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))

        def part(label: str, run: Callable[[], Any], *, again: bool = False) -> None:
            if arguments.only is None or label.partition(" for ")[0] in arguments.only:
                print(f"{label} ...", flush=True)
                record.part(label, run, again=again)

        if arguments.wheels is not None:
            part("install", lambda: install(arguments.wheels, site), again=True)
        bundle = bundle_copy(find_bundle(arguments.bundle).absolute(), work)
        os.environ[WORK_BUNDLE] = str(bundle)
        tests, written = arguments.root.absolute() / "tests", work / "part.json"
        part("machine", lambda: command(["consisti2v_rt", "doctor", "--bundle", str(bundle)], record))
        for label, name in _TESTS.items():
            part(label, partial(run_tests, tests, [f"{tests / BUNDLE_TESTS}::{name}"], work, record))
        others = [str(tests), f"--ignore={tests / BUNDLE_TESTS}"]
        part("tests", lambda: run_tests(tests, others, work, record))
        bench = ["consisti2v_rt", "bench", "run", str(bundle), "--device", "cuda", "--rounds", "5"]
        part("bench", lambda: command(bench, record, written))
        part("kernels", lambda: command(["consisti2v_rt.benchmarks.device.attention"], record, written))


def bundle_copy(bundle: Path, folder: Path) -> Path:
    """A copy that engines may be added to; one that is there is kept, unless it is of another bundle."""
    copy = folder / bundle.name
    if copy.exists():
        files, held = (Bundle.open(path, verify=False).manifest.files for path in (bundle, copy))
        if files.items() <= held.items():
            return copy
        shutil.rmtree(copy)
    return Path(shutil.copytree(bundle, copy))


def command(module: list[str], record: Record, output: Path | None = None) -> Any:
    """Run a module of this package.

    Args:
        output: the JSON that it writes; None: what it prints is the result.

    Raises:
        UserError: it refused, which is code 2 and a sentence.
        RuntimeError: anything else went wrong.
    """
    words = [sys.executable, "-m", *module]
    if output is not None:
        output.unlink(missing_ok=True)
        words += ["--output", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=record.part_seconds, **neutral_place())
    if done.returncode == 2 and "error: " in done.stderr:
        raise UserError(done.stderr.partition("error: ")[2].strip())
    if done.returncode or (output is not None and not output.exists()):
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.splitlines() if output is None else json.loads(output.read_text(encoding="utf-8"))


def run_tests(tests: Path, selection: list[str], work: Path, record: Record) -> dict[str, Any]:
    """``pytest -m gpu``: what became of each test, its seconds, and what it recorded of its own.

    Raises:
        UserError: there is no checkout with tests, or none of them can run here.
        RuntimeError: a test failed.
    """
    if not tests.is_dir():
        raise UserError(f"{tests.parent} has no tests: give a checkout with --root.")
    report = work / "tests.xml"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*words, *selection], capture_output=True, text=True, timeout=record.part_seconds, cwd=tests.parent
    )
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    found = read_report(report)
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-6000:]}")
    if not any(test["outcome"] == "passed" for test in found.values()):
        reasons = dict.fromkeys(test["reason"] for test in found.values())
        raise UserError(f"every test was skipped: {'; '.join(reasons)[:1000]}")
    return found


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """pytest's own report (JUnit's XML): name -> outcome, seconds, the reason of what did not pass, properties."""
    tests: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        entry: dict[str, Any] = {"outcome": "passed", "seconds": float(case.get("time", 0))}
        for kind in ("skipped", "failure", "error"):
            answer = case.find(kind)
            if answer is not None:
                entry |= {"outcome": kind, "reason": answer.get("message", "")}
        for stated in case.iter("property"):
            entry[stated.get("name", "")] = json.loads(stated.get("value", "null"))
        tests[f"{case.get('classname')}.{case.get('name')}"] = entry
    return tests


def distribution(wheel: Path) -> tuple[str, str]:
    """Name and version of a wheel, or of an installed one's ``.dist-info``, by its file name (PEP 427)."""
    name, number = wheel.name.removesuffix(".dist-info").split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), number


def missing(folder: Path) -> list[Path]:
    """The folder's wheels whose distribution is not installed in that version."""
    there = {(re.sub(r"[-_.]+", "-", entry.name or "").lower(), entry.version) for entry in distributions()}
    return [wheel for wheel in sorted(folder.glob("*.whl")) if distribution(wheel) not in there]


def install(folder: Path, site: Path) -> dict[str, str]:
    """Install the missing ones, on a machine that reaches no package registry, into a folder of their own, which comes
    first on the path: what the machine has stays.

    Returns:
        Name -> version of what was installed.

    Raises:
        RuntimeError: pip could not.
    """
    wheels = missing(folder)
    if not wheels:
        return {}
    site.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent) as fresh:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        done = subprocess.run([*command, "--target", fresh, *map(str, wheels)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:])
        # Beside what an earlier run installed: pip itself would replace folders that both have part of, such as
        # ``nvidia`` and ``cuda``.
        names = {distribution(info)[0] for info in Path(fresh).glob("*.dist-info")}
        for info in site.glob("*.dist-info"):
            if distribution(info)[0] in names:
                shutil.rmtree(info)
        shutil.copytree(fresh, site, symlinks=True, dirs_exist_ok=True)
    return dict(distribution(wheel) for wheel in wheels)


if __name__ == "__main__":
    sys.exit(main())
