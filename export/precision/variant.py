"""``write_variant``: a bundle's stages in another precision, validated and put in place at once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.home import check_not_packaged
from ...runtime.bundle.manifest import CalibrationSpec, Manifest, StageSpec
from ...runtime.bundle.stage_graphs import graph_files
from ..bundle_lock import building
from ..lost_files import drop_lost, lost_graph
from ..partial_folders import partial_path
from .calibration.run import Calibration, calibrate
from .cases import Cases
from .conversion import ConversionFacts, convert, variant_spec
from .currency import (
    CALIBRATED_STAGE,
    LOSSES_FILE,
    VariantOptions,
    is_current,
    recorded,
    source_of,
    variant_rules,
)
from .keep_loss import most_within
from .recipe import Recipe, recipe
from .validation import Loss, check_limit, losses, run_cases, run_variant, worst
from .variant_files import Written, put_in_place

_PLAIN = VariantOptions()


@dataclass(frozen=True)
class StageVariant:
    """What became of one stage."""

    stage: str
    precision: str
    skipped: bool
    """It was there already, made from the same float32 graph by the same rules."""
    seconds: float
    bytes: int
    relative_l2: float
    """The largest over all seeds and batch sizes, to the float32 graph."""
    quantised_activations: int = 0
    float32_sums: int = 0
    """Residual sums left in float32, because the stage strays too far with them in half precision."""


def write_variant(
    bundle: str | os.PathLike[str],
    precision: str,
    stages: Sequence[str] | None = None,
    options: VariantOptions = _PLAIN,
    *,
    on_stage_start: Callable[[str], None] = lambda stage: None,
    on_stage: Callable[[StageVariant], None] = lambda variant: None,
    on_sample: Callable[[int, int], None] = lambda done, total: None,
    on_notice: Callable[[str], None] = lambda line: None,
) -> dict[str, StageSpec]:
    """Write stages of a bundle in `precision` below ``variants/<precision>/`` and record them in its manifest.

    Every stage is run against its float32 graph at once, on three seeds and every batch size; the losses are kept in
    ``variants/<precision>/losses.json``. An fp16 stage over its limit is written again with its residual sums in
    float32. Weights are read and written one at a time; the peak of memory is ONNX Runtime running the U-Net. Another
    build into the bundle is waited for; what is lost or damaged of an earlier one leaves the manifest first.

    Args:
        bundle: folder of a bundle with its float32 graphs.
        precision: fp16, bf16, int8 or fp8.
        stages: names; None: all of the manifest's stages.
        options: calibration of activations, the loss that is allowed, the check.
        on_stage_start, on_stage, on_sample: progress; the last while calibrating, samples done and all.
        on_notice: told who is waited for, and what was lost, a line each.

    Returns:
        stage -> what ``manifest.variants[precision][stage]`` says (those written before are left and returned too).

    Raises:
        UserError: unknown precision or stage, a damaged bundle, an operator without a rule, or a stage further from
            its float32 graph than allowed. Nothing is left then.
    """
    recipe(precision)
    opened = Bundle.open(bundle, verify=False)
    check_not_packaged(opened.path)
    wanted = _known_stages(opened.manifest, stages)
    rules = variant_rules(precision, wanted, options)
    with building(opened.path, on_notice):
        # Another build may have changed it meanwhile.
        return _write_stages(
            Bundle.open(bundle, verify=False), wanted, rules, options, on_stage_start, on_stage, on_sample, on_notice
        )


def _write_stages(
    opened: Bundle,
    wanted: Sequence[str],
    rules: Recipe,
    options: VariantOptions,
    on_stage_start: Callable[[str], None],
    on_stage: Callable[[StageVariant], None],
    on_sample: Callable[[int, int], None],
    on_notice: Callable[[str], None],
) -> dict[str, StageSpec]:
    """Within a build: write what is not there as it should be."""
    precision = rules.name
    opened = _without_lost(opened, precision, wanted, options, on_notice)
    kept = recorded(opened, precision)
    folder = opened.path.resolve() / "variants"
    temporary = partial_path(folder / precision)
    cases = Cases(opened)
    written: dict[str, Written] = {}
    try:
        for stage in wanted:
            on_stage_start(stage)
            started = time.perf_counter()
            present = kept.get(stage)
            skipped = present is not None and is_current(present, opened.manifest, stage, rules, options)
            if not skipped:
                _keep_calibration(_calibration(opened, precision, stage), precision, options)
                calibration = None
                if options.calibration is not None and stage == CALIBRATED_STAGE:
                    calibration = calibrate(opened, options.calibration, on_sample=on_sample)
                written[stage] = _write_stage(opened, stage, rules, cases, temporary, options, calibration)
            record = present if present is not None and skipped else written[stage].record
            on_stage(
                StageVariant(
                    stage,
                    precision,
                    skipped,
                    time.perf_counter() - started,
                    record["bytes"],
                    max(loss["relative_l2"] for loss in record["losses"]),
                    record["graph"].get("quantised_activations", 0),
                    record["graph"].get("float32_sums", 0),
                )
            )
        if written:
            put_in_place(opened.path.resolve(), precision, temporary, written, kept)
    except OSError as error:
        raise UserError(
            f"the {precision} variant of {opened.path} cannot be written ({error.strerror or error}): "
            "check space and permissions."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for empty in (folder / precision, folder):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    manifest = Bundle.open(opened.path, verify=False).manifest
    return {stage: manifest.variants[precision][stage] for stage in wanted}


def _without_lost(
    bundle: Bundle, precision: str, stages: Sequence[str], options: VariantOptions, on_notice: Callable[[str], None]
) -> Bundle:
    """The bundle without its lost and damaged parts; of this precision, the files are hashed for it."""
    held = bundle.manifest.variants.get(precision, {})
    record = f"variants/{precision}/{LOSSES_FILE}"
    needed = {record}
    needed.update(name for stage in stages if stage in held for name in graph_files(held[stage]))
    lost = bundle.lost_files(hashed=needed)
    for stage in stages:
        # Refused before anything is dropped: the manifest remembers the calibration.
        if stage in held and (record in lost or lost_graph(held[stage], lost)):
            _keep_calibration(_calibration(bundle, precision, stage), precision, options)
    return drop_lost(bundle, lost, on_notice)


def _calibration(bundle: Bundle, precision: str, stage: str) -> CalibrationSpec | None:
    """What the stage's graph of this precision is calibrated on."""
    graph = bundle.manifest.variants.get(precision, {}).get(stage)
    return None if graph is None else graph.calibration


def _keep_calibration(held: CalibrationSpec | None, precision: str, options: VariantOptions) -> None:
    """A calibration is hours of work at full size: it is not dropped without a word."""
    if held is not None and options.calibration is None and not options.weight_only:
        raise UserError(
            f"the {precision} graph of {CALIBRATED_STAGE} is calibrated on {held.name} and must be written or "
            "checked anew: pass --calibrate again (or --quick-check, if only its check was quick), or --calibrate off."
        )


def _known_stages(manifest: Manifest, stages: Sequence[str] | None) -> list[str]:
    if stages is None:
        return list(manifest.stages)
    for stage in stages:
        if stage not in manifest.stages:
            raise UserError(f"the bundle has no stage {stage!r}: choose of {', '.join(manifest.stages)}.")
    return list(dict.fromkeys(stages))


@dataclass(frozen=True)
class _Attempt:
    """A graph as it was written, and how far it strays."""

    facts: ConversionFacts
    spec: StageSpec
    losses: list[Loss]


def _write_stage(
    bundle: Bundle,
    stage: str,
    rules: Recipe,
    cases: Cases,
    temporary: Path,
    options: VariantOptions,
    calibration: Calibration | None,
) -> Written:
    spec = bundle.manifest.stages[stage]
    source, path = bundle.graph(spec, hashed=True), temporary / stage / f"{stage}.onnx"
    trials = list(islice(cases.of(stage), 1 if options.quick_check else None))
    expected: list[dict[str, Any]] = []

    def attempt(scales: Mapping[str, float], *, wide_sums: bool = False) -> _Attempt:
        facts, types = convert(source, path, rules, scales, wide_sums=wide_sums)
        changed = variant_spec(spec, f"variants/{rules.name}/{stage}/{stage}.onnx", rules.name, types)
        # After the conversion: a weight that does not fit is refused before anything is run.
        expected.extend(run_cases(source, spec, trials) if not expected else ())
        return _Attempt(
            facts, changed, losses(stage, spec, rules, trials, expected, run_variant(path, changed, rules, trials))
        )

    record: dict[str, Any] = {"source": source_of(bundle.manifest, stage)}
    if options.quick_check:
        record["source"]["quick_check"] = True
    if calibration is None:
        made = attempt({})
        if rules.weights is None and rules.limit is not None and worst(made.losses) > rules.limit:
            # Most of what half precision loses is lost in the sums, where small changes meet large values.
            made = attempt({}, wide_sums=True)
    else:
        made, record["activations"] = _attempt_calibrated(attempt, calibration, rules)
        made = replace(made, spec=replace(made.spec, calibration=calibration.spec))
        record["source"] |= {"calibration": asdict(calibration.spec), "max_loss": options.max_loss}
    check_limit(stage, rules, made.losses)
    record |= {
        "bytes": sum(file.stat().st_size for file in path.parent.iterdir()),
        "graph": asdict(made.facts),
        "losses": [asdict(loss) for loss in made.losses],
    }
    return Written(made.spec, record)


def _attempt_calibrated(
    attempt: Callable[[Mapping[str, float]], _Attempt], calibration: Calibration, rules: Recipe
) -> tuple[_Attempt, dict[str, Any]]:
    """As many activations in 8 bits as the limit allows, those first that lose least by themselves."""
    assert rules.weights is not None
    try:
        scales = calibration.scales(rules.weights)
    except OverflowError as error:
        raise UserError(
            f"calibration on {calibration.spec.name} fails ({error}): look at the bundle's weights."
        ) from None
    ordered = sorted(scales, key=lambda name: scales[name].loss)

    def first(count: int) -> _Attempt:
        return attempt({name: scales[name].scale for name in ordered[:count]})

    count, made = most_within(first, len(ordered), lambda made: worst(made.losses), rules.limit)
    left = {name: scales[name].loss for name in ordered[count:]}
    return made, {"quantised": count, "of": len(ordered), "loss_of_those_left": left}
