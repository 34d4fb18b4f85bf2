"""Pictures and Markdown from records; docs/benchmarks.md takes the Markdown between two marks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.files.guarded_read import RECORD, REPORT, read_json, read_text
from ...runtime.files.replace_files import replacing
from .candidates import REFERENCE
from .machine import require
from .record import Record, Row, check_writable, read_record, write_text
from .statistics import seconds
from .tables import AXES, VIDEO, prediction_section, prediction_title, record_section, speed_up_words, split_name

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme: told apart by the colour-blind too."""
_GREY = "#888888"


def write_report(records: Sequence[Path], target: Path) -> list[Path]:
    """Draw every record's picture beside it and write the Markdown.

    A Markdown file that holds the two marks keeps everything outside them; any other is written whole. The records are
    JSON files of ``bench`` and ``bench predict``, in the order they are to appear. Returns what was written.

    Raises:
        UserError: a file that is neither, or a place that cannot be written.
    """
    check_writable(target)
    pictures, sections = [path.with_suffix(".png") for path in records], []
    for path, picture in zip(records, pictures, strict=True):
        check_writable(picture)
        links = [Path(os.path.relpath(file, target.parent)).as_posix() for file in (path, picture)]
        figure, prediction = require("matplotlib.figure").Figure(layout="constrained"), _read_prediction(path)
        if prediction is not None:
            sections.append(prediction_section(prediction, *links))
            _draw_roofline(figure, prediction)
        else:
            record = read_record(path)
            sections.append(record_section(record, *links))
            (_draw_scaling if record.kind == "scaling" else _draw_bars)(figure, record)
        try:
            with replacing([picture]) as (temporary,):
                figure.savefig(temporary, dpi=144, format="png", metadata={"Software": None})
        except OSError as error:
            raise UserError(f"{picture} cannot be written ({error.strerror}): choose another place.") from None
    block, text = "\n".join(sections), read_text(target, REPORT) if target.exists() else ""
    if BEGIN in text or END in text or target.name.lower().startswith("readme"):
        write_text(target, replace_block(text, block, str(target)))
    else:
        write_text(target, f"# Measurements\n\n{block.strip()}\n")
    return [*pictures, target]


def replace_block(text: str, block: str, name: str) -> str:
    """`text` with what stands between the marks replaced.

    Raises:
        UserError: a mark is missing, there more than once, or they are the wrong way round.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} must hold the line {BEGIN} and below it the line {END}, each once: put them in.")
    return f"{text.split(BEGIN)[0]}{BEGIN}\n\n{block.strip()}\n\n{END}{text.split(END)[1]}"


def _read_prediction(path: Path) -> dict[str, Any] | None:
    """A prediction as ``bench predict`` writes it; None for anything else."""
    try:
        data = read_json(path, RECORD)
    except UserError:
        return None
    wanted = {"gpu", "videos", "unet_kinds", "precision", "summary"}
    return data if isinstance(data, dict) and data.get("prediction") is True and wanted <= data.keys() else None


# -- pictures ----------------------------------------------------------------------------------------------------------


def _bars_words(record: Record) -> str:
    rounds = sorted({len(row.seconds) for target in record.targets for row in target.rows})
    return f"median of {' or '.join(map(str, rounds))} rounds; whiskers: min to max"


def _whiskers(rows: Sequence[Row]) -> list[list[float]]:
    return [[row.median - min(row.seconds) for row in rows], [max(row.seconds) - row.median for row in rows]]


def _draw_bars(figure: Any, record: Record) -> None:
    """Whole videos: one bar a stage and target. Side by side: one bar a target, with its speed-up and distance."""
    able, title = record.able, f"{record.bundle['name']}: {record.what}"
    # Of every bar: place, row, label, colour.
    bars: list[tuple[float, Row, str, str]] = []
    if record.kind == "latency":
        ticks = list(dict.fromkeys(row.name for target in able for row in target.rows if row.name != VIDEO))
        height = 0.8 / max(1, len(able))
        for index, target in enumerate(able):
            colour = _COLOURS[index % len(_COLOURS)]
            shown = [(ticks.index(row.name), row) for row in target.rows if row.name in ticks]
            bars += [(place + height * index, row, seconds(row.median), colour) for place, row in shown]
        title += "\n" + ", ".join(f"{s.name}: {seconds(row.median)}" for s in able if (row := s.row(VIDEO)) is not None)
    else:
        ticks, height = [f"{target.name}\n{target.device}" for target in able], 0.7
        for index, target in enumerate(able):
            row, label = target.rows[0], seconds(target.rows[0].median)
            if target.speed_up is not None and target.relative_l2 is not None and target.name != REFERENCE:
                label += f", {speed_up_words(record, target)}, rel. L2 {target.relative_l2:.0e}"
            bars.append((index, row, label, _GREY if target.backend.startswith("torch") else _COLOURS[0]))
    figure.set_size_inches(8, 1.2 + (0.34 if record.kind == "latency" else 0.45) * max(1, len(bars)))
    axes, rows = figure.add_subplot(), [bar[1] for bar in bars]
    axes.barh(
        [bar[0] for bar in bars],
        [row.median for row in rows],
        0.92 * height,
        color=[bar[3] for bar in bars],
        xerr=_whiskers(rows),
        error_kw={"elinewidth": 1},
    )
    for place, row, label, _ in bars:
        axes.annotate(label, (max(row.seconds), place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    offset = height * (len(able) - 1) / 2 if record.kind == "latency" else 0.0
    axes.set_yticks([place + offset for place in range(len(ticks))], ticks)
    axes.invert_yaxis()
    # Room for the labels beside the longest bar.
    axes.set_xlim(0, 1.8 * max((max(row.seconds) for row in rows), default=1.0))
    axes.set_xlabel(f"seconds ({_bars_words(record)})")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if record.kind == "latency" and len(able) > 1:
        from matplotlib.patches import Patch

        axes.legend(handles=[Patch(color=colour, label=s.name) for s, colour in zip(able, _COLOURS, strict=False)])


def _draw_scaling(figure: Any, record: Record) -> None:
    """A panel an axis; the dashed line is what strict proportion to the first point would take."""
    points: dict[str, dict[int, Row]] = {}
    for row in (row for target in record.targets for row in target.rows):
        axis, value = split_name(row.name)
        points.setdefault(axis, {})[value] = row
    shown = [axis for axis in AXES if axis in points]
    columns = min(2, len(shown)) or 1
    lines = -(-len(shown) // columns) or 1
    figure.set_size_inches(4.4 * columns, 3.2 * lines)
    for number, axis in enumerate(shown, start=1):
        panel, values = figure.add_subplot(lines, columns, number), sorted(points[axis])
        rows = [points[axis][value] for value in values]
        medians = [row.median for row in rows]
        panel.errorbar(values, medians, _whiskers(rows), marker="o", color=_COLOURS[0], capsize=3, label="measured")
        power, grown = (2, "pixels") if axis == "resolution" else (1, axis)
        work = [(value / values[0]) ** power * medians[0] for value in values]
        panel.plot(values, work, "--", color=_GREY, label=f"in proportion to the {grown}")
        unit, timed = AXES[axis]
        panel.set(xticks=values, xlabel=unit, ylabel=f"seconds, {timed}", ylim=(0, None))
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    title = f"{record.bundle['name']}, {record.targets[0].name}; {_bars_words(record)}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")


def _draw_roofline(figure: Any, prediction: Mapping[str, Any]) -> None:
    """Every kind of the U-Net's work under a GPU's roof."""
    bandwidth, peaks = prediction["gpu"]["bandwidth"], prediction["gpu"]["peak_flops"]
    rows = [row for row in prediction["unet_kinds"] if row["total"]["flops"] and row["flops_per_byte"]]
    figure.set_size_inches(8, 5)
    axes, intensities = figure.add_subplot(), [row["flops_per_byte"] for row in rows]
    left, right = min([*intensities, 1.0]) / 2, max([*intensities, peaks["fp16"] / bandwidth]) * 4
    for accumulation, style in (("fp16", "-"), ("fp32", "--")):
        peak = peaks[accumulation]
        roof = [left * bandwidth / 1e12, peak / 1e12, peak / 1e12]
        label = f"roof, {accumulation.upper()} accumulation: {peak / 1e12:.3g} TFLOP/s"
        axes.plot([left, peak / bandwidth, right], roof, style, color="black", label=label)
    for index, row in enumerate(rows):
        reached = row["total"]["flops"] / row["stated"] / 1e12
        colour, marker = _COLOURS[index % len(_COLOURS)], "osD^vP"[index // len(_COLOURS) % 6]
        share = row["total"]["flops"] / sum(entry["total"]["flops"] for entry in rows)
        label = f"{row['total']['kind']} ({share:.0%})"
        axes.plot(row["flops_per_byte"], reached, marker, color=colour, markersize=8, label=label)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylabel="TFLOP/s")
    axes.set_xlabel("FLOP per byte of memory traffic, ideally fused")
    for scale in (axes.xaxis, axes.yaxis):
        scale.set_major_formatter("{x:g}")
    axes.set_title(
        f"{prediction_title(prediction)}, {bandwidth / 1e9:g} GB/s: one U-Net forward by kind of work,\n"
        "at stated efficiencies, a prediction (in brackets: share of the FLOPs)",
        loc="left",
        fontsize=10,
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
