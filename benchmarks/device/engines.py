"""Engines for the GPU at hand, and for others that may run on it: what builds, what loads, and every refusal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import Bundle

TARGETS = ("current", "rtx", "sm80")


def bundle_copy(bundle: Path, folder: Path) -> Path:
    """A copy that engines may be added to; one that is there is kept, unless it is of another bundle."""
    copy = folder / bundle.name
    if copy.exists():
        files, held = (Bundle.open(path, verify=False).manifest.files for path in (bundle, copy))
        if files.items() <= held.items():
            return copy
        shutil.rmtree(copy)
    return Path(shutil.copytree(bundle, copy))


def try_target(bundle: Path, target: str, precision: str = "fp16") -> dict[str, Any]:
    """Build for a target, then let the library load the U-Net's plan on this GPU, whatever the manifest says of it.

    All stages are built, but for SM80: no other card takes its plans as engines, so that the U-Net alone tells.

    Raises:
        UserError: it is not built here.
        RuntimeError: it was built, and does not load.
    """
    from ...export.engines.bundle_engines import EngineReport, build_engines
    from ...runtime.gpu.device import open_gpu
    from ...runtime.gpu.tensorrt_session import load_module

    reports: list[EngineReport] = []
    stages = ["unet"] if target == "sm80" else None
    # Its build is measured, also where an earlier run of this script left one.
    forget_target(bundle, target)
    build_engines(bundle, target, precision=precision, stages=stages, on_engine=reports.append)
    opened = Bundle.open(bundle, verify=False)
    engine = next(e for e in reversed(opened.manifest.engines) if e.stage == "unet" and e.precision == precision)
    module, words = load_module(engine.flavour), Messages.of(load_module(engine.flavour))
    open_gpu().make_current()
    runtime = module.Runtime(words)
    if runtime.deserialize_cuda_engine(opened.read(engine.file, hashed=True).tobytes()) is None:
        forget_target(bundle, engine.target)
        raise RuntimeError(
            f"{engine.flavour} {engine.version} refuses the plan: {'; '.join(words.lines) or 'no reason'}"
        )
    return {
        "target": engine.target,
        "compute_capabilities": list(engine.compute_capabilities),
        "loads": True,
        "stages": {
            report.engine.stage: {
                "seconds": round(report.seconds, 3),
                "plan_bytes": report.plan_bytes,
                "fused_attentions": report.fused_attentions,
                "decomposed_attentions": len(report.decomposed_attentions),
            }
            for report in reports
        },
    }


def forget_target(bundle: Path, target: str) -> None:
    """Take engines that this GPU refuses out of the manifest, so that no later part chooses them."""
    from ...export.manifest_file import rewrite_manifest

    rewrite_manifest(bundle, lambda m: replace(m, engines=tuple(e for e in m.engines if e.target != target)))


def target_here(bundle: Bundle) -> str:
    """What is built for this card: "current", or the portable target where that alone was built."""
    built = [engine.target for engine in bundle.manifest.engines]
    return next((target for target in ("current", "rtx") if target in built), "current")


class Messages:
    """Makes a logger that keeps warnings and errors."""

    @staticmethod
    def of(module: Any) -> Any:
        class Logger(module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                module.ILogger.__init__(self)
                self.lines: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity not in (module.ILogger.Severity.INFO, module.ILogger.Severity.VERBOSE):
                    self.lines.append(" ".join(message.split())[:500])

        return Logger()
