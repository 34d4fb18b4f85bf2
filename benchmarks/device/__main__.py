"""Everything that needs an NVIDIA GPU, in under ten minutes, into one JSON.

``benchmarks/device.sh --wheels FOLDER --output device.json`` from a checkout, or ``python -m
consisti2v_rt.benchmarks.device`` where the package is installed. Each part runs in a process of its own: a crash of a
library ends that part alone. Parts: machine, install, engines (what builds and loads on this card, and the words of
every refusal), tests (``pytest -m gpu``), parity (each stage against ONNX Runtime CPU), video (with and without graph),
kernels, bench.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .engines import TARGETS
from .record import Record
from .wheels import install

PACKAGE = "consisti2v_rt.benchmarks.device"
_ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run all parts; 0 where every part gave a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels; what is missing is installed from it")
    parser.add_argument("--site", type=Path, help="folder to install into; a temporary one if absent")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the checkout, for its tests")
    parser.add_argument("--bundle", type=Path, default=_ROOT / "assets" / "demo_bundle", help="bundle to run")
    parser.add_argument("--output", type=Path, default=Path("device.json"), help="the record")
    parser.add_argument("--seconds", type=float, default=540, help="time for everything")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="{}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        result = _PARTS[arguments.part](arguments.bundle, **json.loads(arguments.argument))
        arguments.output.write_text(json.dumps(result), encoding="utf-8")
        return 0
    return _run_all(arguments)


def _run_all(arguments: argparse.Namespace) -> int:
    record = Record(arguments.output, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        site = arguments.site or work / "site"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        if arguments.wheels is not None:
            record.section("install", lambda: install(arguments.wheels, site))

        def part(name: str, label: str | None = None, bundle: Path = arguments.bundle, **options: Any) -> Any:
            print(f"{label or name} ...", flush=True)
            return record.section(label or name, lambda: _in_process(name, bundle, options, work, record.seconds_left))

        part("machine")
        bundle = part("copy", folder=str(work))
        bundle = Path(bundle) if bundle else arguments.bundle
        for target in TARGETS:
            part("engine", f"engine for {target}", bundle, target=target)
        for name, precision in part("choices", bundle=bundle) or []:
            part("parity", f"parity {name} {precision}", bundle, backend=name, precision=precision)
            for cuda_graph in (True, False):
                label = f"video {name} {precision} {'with' if cuda_graph else 'without'} graph"
                part("video", label, bundle, backend=name, precision=precision, cuda_graph=cuda_graph)
        record.section("tests", lambda: _tests(arguments.root, min(200.0, record.seconds_left)))
        record.section("kernels", lambda: _command(["consisti2v_rt.benchmarks.kernels_on_gpu"], work, record))
        bench = ["consisti2v_rt", "bench", "run", str(bundle), "--device", "cuda", "--rounds", "3"]
        record.section("bench", lambda: _command(bench, work, record))
    failed = [name for name, entry in record.sections.items() if "result" not in entry]
    print(f"{arguments.output}: {len(record.sections)} parts, without a result: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _in_process(name: str, bundle: Path, options: dict[str, Any], work: Path, seconds: float) -> Any:
    output = work / "part.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", PACKAGE, "--part", name, "--bundle", str(bundle), "--output", str(output)]
    done = subprocess.run(
        [*command, "--argument", json.dumps(options)], capture_output=True, text=True, timeout=max(seconds, 1)
    )
    if done.returncode or not output.exists():
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def _command(module: list[str], work: Path, record: Record) -> Any:
    """A command of this package that writes a JSON record."""
    output = work / "command.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", *module, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(record.seconds_left, 1))
    if done.returncode or not output.exists():
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def _tests(root: Path, seconds: float) -> dict[str, Any]:
    """``pytest -m gpu``: its counts and its last lines."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(root / "tests")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), cwd=root)
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-6000:]}")
    return {"seconds": time.monotonic() - started, "tail": done.stdout[-3000:]}


# -- parts, each in a process of its own -------------------------------------------------------------------------------


def _machine(bundle: Path) -> dict[str, Any]:
    from importlib.metadata import distributions

    from ...runtime.backends import table
    from ...runtime.bundle import Bundle
    from ...runtime.gpu.device import probe

    rows = table(Bundle.open(bundle, verify=False), "cuda")
    words = ("cuda", "nvidia", "tensorrt", "onnx", "torch", "numpy")
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {
        "gpu": vars(probe()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {
            name: number for name, number in sorted(installed.items()) if any(w in name.lower() for w in words)
        },
        "backends": [{"backend": row.backend.title, "used": row.used, "reason": row.reason} for row in rows],
    }


def _copy(bundle: Path, folder: str) -> str:
    from .engines import bundle_copy

    return str(bundle_copy(bundle, Path(folder)))


def _engine(bundle: Path, target: str) -> dict[str, Any]:
    from .engines import try_target

    return try_target(bundle, target)


def _choices(bundle: Path) -> list[list[str]]:
    from ...runtime.bundle import Bundle
    from .parity import cuda_backends

    return [[backend.name, precision] for backend, precision in cuda_backends(Bundle.open(bundle, verify=False))]


def _parity(bundle: Path, backend: str, precision: str) -> dict[str, Any]:
    from ...runtime.backends import BACKENDS
    from .parity import LIMITS, stage_parity

    chosen = next(entry for entry in BACKENDS if entry.name == backend)
    errors = stage_parity(bundle, chosen, precision)
    return {"limit": LIMITS[precision], "worst": max(errors.values()), "relative_l2": errors}


def _video(bundle: Path, backend: str, precision: str, cuda_graph: bool) -> dict[str, Any]:
    from .videos import compare_video

    return compare_video(bundle, backend, precision, cuda_graph=cuda_graph)


_PARTS: dict[str, Any] = {
    "machine": _machine,
    "copy": _copy,
    "engine": _engine,
    "choices": _choices,
    "parity": _parity,
    "video": _video,
}

if __name__ == "__main__":
    sys.exit(main())
