"""The facts of an engine as a JSON file beside it: a plan itself tells nothing without a GPU."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ...runtime.bundle.engines import FACTS_VERSION
from ...runtime.bundle.manifest import EngineSpec
from ...runtime.gpu.device import GpuStatus
from .plan import Plan


def engine_facts(engine: EngineSpec, plan: Plan, onnx_file: str, onnx_bytes: int, gpu: GpuStatus) -> dict[str, Any]:
    """Everything known at build time; sizes in bytes, times in seconds."""
    described = dataclasses.asdict(engine)
    return {
        "facts_version": FACTS_VERSION,
        **{name: described[name] for name in ("stage", "target", "compute_capabilities", "flavour", "version")},
        **{name: described[name] for name in ("precision", "stripped", "platform")},
        "onnx": {"file": onnx_file, "sha256": engine.onnx_sha256, "bytes": onnx_bytes},
        "inputs": described["inputs"],
        "outputs": described["outputs"],
        "profiles": described["profiles"],
        "layers": {"total": sum(plan.layers.values()), "kinds": plan.layers},
        "attentions": {
            "fused": list(plan.attentions.fused),
            "decomposed": [dataclasses.asdict(entry) for entry in plan.attentions.decomposed],
        },
        "plan_bytes": plan.plan_bytes,
        "weight_bytes": plan.weight_bytes,
        "activation_bytes": list(plan.activation_bytes),
        "build_seconds": round(plan.seconds, 3),
        "peak_host_bytes": plan.peak_host_bytes,
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability} if gpu.found else None,
        "warnings": list(plan.warnings),
    }


def facts_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"
