"""Everything that needs an NVIDIA GPU, in one go, into one JSON.

``benchmarks/device.sh --wheels FOLDER --output device.json`` from a checkout, or ``python -m
consisti2v_rt.benchmarks.device`` where the package is installed. Each part runs in a process of its own, with a time
of its own: a crash or a hang of a library ends that part alone. The record says of each: ran (with its result), refused
(in one sentence), failed or skipped. Where time ends before the parts do, ``--resume`` goes on in the same record.

Parts: install, machine, engine (this card, the portable and the SM80 plans: what builds and loads), parity (each stage,
batch and three seeds against ONNX Runtime CPU), video (with and without graph, low VRAM), device noise, inspector,
compare (polygraphy), stripped (an engine without weights, refitted), tests (``pytest -m gpu``), bench, kernels,
calibrated (int8, fp8: loss, engine, video).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...locations import ROOT
from ...runtime.bundle.home import find_bundle
from ...runtime.child_process import neutral_place
from ...runtime.commands.console import PlainParser, plain, print_error
from .engines import TARGETS
from .parts import PARTS
from .record import RAN, Record
from .wheels import install

PACKAGE = "consisti2v_rt.benchmarks.device"
GROUPS = ("install", *(name for name in PARTS if name not in ("copy", "choices")), "tests", "bench", "kernels")
"""What ``--only`` may name."""
_PRECISIONS = ("fp32", "fp16")
_MOST = 240.0
"""Seconds of one part."""


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
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        arguments.output.write_text(json.dumps(_answer(arguments)), encoding="utf-8")
        return 0
    try:
        record = Record(arguments.output, arguments.seconds, resume=arguments.resume)
    except UserError as error:
        print_error(error)
        return 2
    _run_all(arguments, record)
    missing = record.without_result()
    print(f"{plain(arguments.output)}: {len(record.parts)} parts, {len(missing)} without a result")
    for name, status in missing.items():
        print(plain(f"  {name}: {status}, {record.parts[name]['reason'][:300]}"))
    return 1 if missing else 0


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a part's process hands back: its result, or its refusal."""
    try:
        return {"result": PARTS[arguments.part](arguments.bundle, **json.loads(arguments.argument))}
    except UserError as refusal:
        return {"refused": str(refusal)}


def _run_all(arguments: argparse.Namespace, record: Record) -> None:
    with ExitStack() as stack:
        # Absolute: the parts work in another folder.
        work = (arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        work.mkdir(parents=True, exist_ok=True)
        site = arguments.site or work / "site"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))

        def wanted(group: str) -> bool:
            return arguments.only is None or group in arguments.only

        def section(label: str, run: Callable[[], Any], *, group: str = "", again: bool = False) -> Any:
            if not wanted(group or label) and group != "always":
                return None
            print(f"{label} ...", flush=True)
            return record.part(label, run, again=again)

        def part(name: str, label: str = "", *, group: str = "", again: bool = False, **options: Any) -> Any:
            def run() -> Any:
                return _in_process(name, bundle, options, work, record)

            return section(label or name, run, group=group or name, again=again)

        if arguments.wheels is not None:
            section("install", lambda: install(arguments.wheels, site), again=True)
        bundle = find_bundle(arguments.bundle).absolute()
        part("machine")
        bundle = Path(part("copy", group="always", again=True, folder=str(work)) or bundle)
        for target in TARGETS:
            part("engine", f"engine for {target}", target=target)
        choices = part("choices", group="always", again=True) or []
        if not choices:
            for group in ("parity", "video", "device noise"):
                section(group, lambda: _refuse(record.parts["choices"]["reason"]))
        for name, precision in choices:
            if precision not in _PRECISIONS:
                continue
            here = {"backend": name, "precision": precision}
            part("parity", f"parity {name} {precision}", **here)
            for graph in (True, False):
                part("video", _video_label(name, precision, graph), **here, cuda_graph=graph)
            part("video", f"video {name} {precision} low vram", **here, low_vram=True)
        for name, precision in _with_videos(choices, record)[:1]:
            part("device noise", backend=name, precision=precision)
        part("inspector")
        part("compare")
        part("stripped", folder=str(work))
        section("tests", lambda: _tests(arguments.root, record))
        bench = ["consisti2v_rt", "bench", "run", str(bundle), "--device", "cuda", "--rounds", "5"]
        section("bench", lambda: _command(bench, work, record))
        section("kernels", lambda: _command(["consisti2v_rt.benchmarks.kernels_on_gpu"], work, record))
        for precision in ("int8", "fp8"):
            part("calibrated", f"calibrated {precision}", precision=precision)


def _video_label(backend: str, precision: str, graph: bool) -> str:
    return f"video {backend} {precision} {'with' if graph else 'without'} graph"


def _with_videos(choices: list[list[str]], record: Record) -> list[list[str]]:
    """Those first that made a video: an engine may load and not run."""
    made = [c for c in choices if record.parts.get(_video_label(c[0], c[1], True), {}).get("status") == RAN]
    return [*made, *choices]


def _refuse(reason: str) -> None:
    raise UserError(reason)


def _time(record: Record) -> float:
    return max(1.0, min(_MOST, record.seconds_left))


def _in_process(name: str, bundle: Path, options: dict[str, Any], work: Path, record: Record) -> Any:
    output = work / "part.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", PACKAGE, "--part", name, "--bundle", str(bundle), "--output", str(output)]
    done = subprocess.run(
        [*command, "--argument", json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=_time(record),
        **neutral_place(),
    )
    if done.returncode or not output.exists():
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    answer = json.loads(output.read_text(encoding="utf-8"))
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer["result"]


def _command(module: list[str], work: Path, record: Record) -> Any:
    """A command of this package that writes a JSON record; code 2 is its refusal."""
    output = work / "command.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", *module, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_time(record), **neutral_place())
    if done.returncode == 2 and "error: " in done.stderr:
        raise UserError(done.stderr.partition("error: ")[2].strip())
    if done.returncode or not output.exists():
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def _tests(root: Path, record: Record) -> dict[str, Any]:
    """``pytest -m gpu``: its last lines.

    Raises:
        UserError: there is no checkout with tests, or none of them can run here.
        RuntimeError: a test failed.
    """
    if not (root / "tests").is_dir():
        raise UserError(f"{root} has no tests: give a checkout with --root.")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(root / "tests")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=_time(record), cwd=root)
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-6000:]}")
    if " passed" not in done.stdout:
        raise UserError(f"every test was skipped: {done.stdout.strip()[-1000:]}")
    return {"seconds": time.monotonic() - started, "tail": done.stdout[-3000:]}


if __name__ == "__main__":
    sys.exit(main())
