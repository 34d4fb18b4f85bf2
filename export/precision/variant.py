"""``write_variant``: a bundle's stages in another precision, validated and put in place at once."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.home import check_not_packaged
from ...runtime.bundle.manifest import Manifest, StageSpec
from ...runtime.bundle.stage_graphs import graph_files
from ..bundle_lock import building, partial_path
from ..bundle_parts import drop_lost, lost_graph, replace_parts
from ..events import Events
from .calibration import Calibration, calibrate
from .cases import Cases
from .conversion import ConversionReport, convert, variant_spec
from .recipe import (
    ACCUMULATED,
    CALIBRATED_STAGE,
    LOSSES_FILE,
    Recipe,
    VariantOptions,
    is_current,
    recorded,
    source_of,
    variant_rules,
)
from .validation import Loss, NotFiniteError, check_limit, losses, run_cases, run_variant, worst

_PLAIN, _NOBODY = VariantOptions(), Events()
_MOST_TRIALS = 6
"""How often activations are halved to keep a limit: to a 64th of them."""


@dataclass(frozen=True)
class StageVariant:
    """Result of one stage."""

    stage: str
    precision: str
    skipped: bool
    """It was there already, made from the same float32 graph by the same rules."""
    relative_l2: float
    """The largest over all seeds and batch sizes, to the float32 graph."""
    quantised_activations: int
    float32_sums: int
    """Residual sums left in float32, because the stage strays too far with them in half precision."""
    float32_scores: int
    """Attentions whose scores are left in float32, because they or the sums are not finite in half precision."""
    fp16_accumulators: float | None
    """`relative_l2` where products accumulate in float16, on the case that loses most; infinite where it overflows;
    None: another precision."""


def write_variant(
    bundle: str | os.PathLike[str],
    precision: str,
    stages: Sequence[str] | None = None,
    options: VariantOptions = _PLAIN,
    events: Events = _NOBODY,
) -> dict[str, StageSpec]:
    """Write stages of a bundle in `precision` below ``variants/<precision>/`` and record them in its manifest.

    Every stage is run against its float32 graph at once, on three seeds and every batch size; the losses are kept in
    ``variants/<precision>/losses.json``, for fp16 also that of float16 accumulators, on the case that loses most. An
    fp16 stage that is over its limit or not finite is written again with its residual sums in float32. Weights are read
    and written one at a time; the peak of memory is ONNX Runtime running the U-Net. Another build into the bundle is
    waited for; what is lost or damaged of an earlier one leaves the manifest first.

    Args:
        bundle: folder of a bundle with its float32 graphs.
        precision: fp16, bf16, int8 or fp8.
        stages: names; None: all of the manifest's stages.
        options: calibration of activations, the loss that is allowed, the check.
        events: callbacks; `progress` is called for every run of a check, each case in float32 and rounded.

    Returns:
        stage -> what ``manifest.variants[precision][stage]`` says (those written before are left and returned too).

    Raises:
        UserError: unknown precision or stage, a damaged bundle, an operator without a rule, or a stage further from
            its float32 graph than allowed. Nothing is left then.
    """
    opened = Bundle.open(bundle, verify=False)
    check_not_packaged(opened.path)
    known = opened.manifest.stages
    for stage in stages or ():
        if stage not in known:
            raise UserError(f"the bundle has no stage {stage!r}: choose of {', '.join(known)}.")
    wanted = list(known if stages is None else dict.fromkeys(stages))
    rules = variant_rules(precision, wanted, options)
    with building(opened.path, events.notice):
        # Another build may have changed it meanwhile.
        opened = _without_lost(Bundle.open(bundle, verify=False), precision, wanted, options, events)
        try:
            _write_stages(opened, wanted, rules, options, events)
        except OSError as error:
            raise UserError(
                f"the {precision} variant of {opened.path} cannot be written ({error.strerror or error}): "
                "check space and permissions."
            ) from None
        manifest = Bundle.open(opened.path, verify=False).manifest
    return {stage: manifest.variants[precision][stage] for stage in wanted}


def _write_stages(
    opened: Bundle, wanted: Sequence[str], rules: Recipe, options: VariantOptions, events: Events
) -> None:
    """Write what is not there as it should be."""
    precision, root = rules.name, opened.path.resolve()
    place = f"variants/{precision}"
    entries = recorded(opened, precision)
    temporary = partial_path(root / "variants")
    cases = Cases(opened)
    written: dict[str, StageSpec] = {}
    try:
        for stage in wanted:
            events.phase(f"{precision} graph of {stage}")
            skipped = stage in entries and is_current(entries[stage], opened.manifest, stage, rules, options)
            if not skipped:
                _keep_calibration(opened.manifest, precision, stage, options)
                path = temporary / place / stage / f"{stage}.onnx"
                written[stage], entries[stage] = _write_stage(opened, stage, rules, cases, path, options, events)
            record = entries[stage]
            loss, graph = max(loss["relative_l2"] for loss in record["losses"]), record["graph"]
            activations, sums, scores = (
                graph.get(name, 0) for name in ("quantised_activations", "float32_sums", "float32_scores")
            )
            summed = record.get("fp16_accumulators")
            summed_loss = (
                None if summed is None else math.inf if summed["relative_l2"] is None else summed["relative_l2"]
            )
            events.variant(StageVariant(stage, precision, skipped, loss, activations, sums, scores, summed_loss))
        if not written:
            return
        text = json.dumps({"precision": precision, "stages": entries}, indent=2) + "\n"
        (temporary / place / LOSSES_FILE).write_text(text, encoding="utf-8")
        names = [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]
        replace_parts(root, temporary, sorted(names), lambda manifest: with_stages(manifest, precision, written))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def with_stages(manifest: Manifest, precision: str, written: Mapping[str, StageSpec]) -> Manifest:
    """The manifest with these graphs of a precision, in the order of its stages."""
    held = {**manifest.variants.get(precision, {}), **written}
    ordered = {stage: held[stage] for stage in manifest.stages if stage in held}
    return replace(manifest, variants=manifest.variants | {precision: ordered})


def _without_lost(
    bundle: Bundle, precision: str, stages: Sequence[str], options: VariantOptions, events: Events
) -> Bundle:
    """The bundle without its lost and damaged parts; of this precision, the files are hashed for it."""
    held = bundle.manifest.variants.get(precision, {})
    record = f"variants/{precision}/{LOSSES_FILE}"
    lost = bundle.lost_files(hashed={record, *(name for s in stages if s in held for name in graph_files(held[s]))})
    for stage in stages:
        # Refused before anything is dropped: the manifest remembers the calibration.
        if stage in held and (record in lost or lost_graph(held[stage], lost)):
            _keep_calibration(bundle.manifest, precision, stage, options)
    return drop_lost(bundle, lost, events.notice)


def _keep_calibration(manifest: Manifest, precision: str, stage: str, options: VariantOptions) -> None:
    """A calibration takes hours at full size: dropping one silently is refused."""
    graph = manifest.variants.get(precision, {}).get(stage)
    if graph is not None and graph.calibration is not None and options.calibration is None and not options.weight_only:
        raise UserError(
            f"the {precision} graph of {stage} is calibrated on {graph.calibration.name} and must be written or "
            "checked anew: pass --calibrate again (or --quick-check, if only its check was quick), or --calibrate off."
        )


@dataclass(frozen=True)
class _Attempt:
    """A graph as it was written, and how far it strays."""

    metadata: ConversionReport
    spec: StageSpec
    losses: list[Loss]


def _write_stage(
    bundle: Bundle, stage: str, rules: Recipe, cases: Cases, path: Path, options: VariantOptions, events: Events
) -> tuple[StageSpec, dict[str, Any]]:
    """Write one graph; returns its entries in the manifest and in ``losses.json``."""
    calibration = None
    if options.calibration is not None and stage == CALIBRATED_STAGE:
        calibration = calibrate(
            bundle,
            options.calibration,
            lambda done, total: events.phase(f"calibrating on sample {done + 1} of {total}"),
        )
    spec = bundle.manifest.stages[stage]
    source, trials = bundle.graph(spec, hashed=True), list(islice(cases.of(stage), 1 if options.quick_check else None))
    expected: list[dict[str, Any]] = []

    runs = 2 * len(trials) + (rules.name == ACCUMULATED)

    def on_run(number: int) -> None:
        events.progress(f"run {number + 1} of {runs}", number, runs)

    def attempt(scales: Mapping[str, float], *, wide_sums: bool = False, wide_scores: bool = False) -> _Attempt:
        metadata, types = convert(source, path, rules, scales, wide_sums=wide_sums, wide_scores=wide_scores)
        changed = variant_spec(spec, f"variants/{rules.name}/{stage}/{stage}.onnx", rules.name, types)
        # After the conversion: a weight that does not fit is refused before anything is run.
        expected.extend(() if expected else run_cases(source, spec, trials, on_run))
        got = run_variant(path, changed, rules, trials, lambda number: on_run(number + len(trials)))
        return _Attempt(metadata, changed, losses(stage, spec, rules, trials, expected, got))

    record: dict[str, Any] = {"source": source_of(bundle.manifest, stage)}
    if options.quick_check:
        record["source"]["quick_check"] = True
    if calibration is None:
        may_widen = rules.name == "fp16"
        try:
            made = attempt({})
            if may_widen and rules.limit is not None and worst(made.losses) > rules.limit:
                # Most of what half precision loses is lost in the sums, where small changes meet large values.
                made = attempt({}, wide_sums=True)
        except NotFiniteError:
            if not may_widen:
                raise
            # Sums and scores are what first passes the largest float16 number, 65504.
            made = attempt({}, wide_sums=True, wide_scores=True)
    else:
        made, record["activations"] = _attempt_calibrated(attempt, calibration, rules)
        made = replace(made, spec=replace(made.spec, calibration=calibration.spec))
        record["source"] |= {"calibration": asdict(calibration.spec), "max_loss": options.max_loss}
    check_limit(stage, rules, made.losses)
    if rules.name == ACCUMULATED:
        most = max(range(len(trials)), key=lambda number: made.losses[number].relative_l2)
        case, wanted = trials[most], expected[most]
        got = run_variant(path, made.spec, rules, [case], lambda number: on_run(runs - 1), float16_sums=True)
        record["fp16_accumulators"] = asdict(made.losses[most]) | {"relative_l2": None}
        with suppress(NotFiniteError):
            (summed,) = losses(stage, spec, rules, [case], [wanted], got)
            record["fp16_accumulators"] = asdict(summed)
    record |= {
        "bytes": sum(file.stat().st_size for file in path.parent.iterdir()),
        "graph": asdict(made.metadata),
        "losses": [asdict(loss) for loss in made.losses],
    }
    return made.spec, record


def _attempt_calibrated(
    attempt: Callable[[Mapping[str, float]], _Attempt], calibration: Calibration, rules: Recipe
) -> tuple[_Attempt, dict[str, Any]]:
    """As many activations in 8 bits as the limit allows, those first that lose least by themselves: all, or found by
    halving. The last one made stays; where even none keeps the limit, the caller judges it.
    """
    assert rules.weights is not None
    try:
        scales = {name: found.scale(rules.weights) for name, found in calibration.ranges.items()}
    except OverflowError as error:
        raise UserError(
            f"calibration on {calibration.spec.name} fails ({error}): look at the bundle's weights."
        ) from None
    ordered = sorted(scales, key=lambda name: scales[name].loss)

    def first(count: int) -> tuple[_Attempt, bool]:
        made = attempt({name: scales[name].scale for name in ordered[:count]})
        return made, rules.limit is None or worst(made.losses) <= rules.limit

    best = last = len(ordered)
    made, within = first(best)
    if not within:
        best, over = 0, len(ordered)
        for _ in range(_MOST_TRIALS):
            if over - best < 2:
                break
            last = (best + over) // 2
            made, within = first(last)
            best, over = (last, over) if within else (best, last)
        if last != best:
            made, _ = first(best)
    left = {name: scales[name].loss for name in ordered[best:]}
    return made, {"quantised": best, "of": len(ordered), "loss_of_those_left": left}
