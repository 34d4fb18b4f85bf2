"""Pictures of records and predictions, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.files.replace_files import replacing
from .intervals import speed_up_words
from .latency import VIDEO
from .machine import require
from .record import Record, Row, Subject
from .scaling import AXES, UNITS, WORK, split_name
from .subjects_of_bundle import REFERENCE
from .units import seconds

_DPI = 144
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme: told apart by the colour-blind too."""
_GREY = "#888888"


def plot_record(record: Record, path: Path) -> Path:
    """The picture that goes with a record's kind.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    draw: dict[str, Callable[[Any, Record], None]] = {
        "latency": _draw_stages,
        "side_by_side": _draw_forwards,
        "scaling": _draw_scaling,
    }
    return _save(lambda figure: draw[record.kind](figure, record), path)


def plot_roofline(prediction: Mapping[str, Any], path: Path) -> Path:
    """Every kind of the U-Net's work under a GPU's roof; `prediction` is ``bench predict --json``."""
    return _save(lambda figure: _draw_roofline(figure, prediction), path)


def _save(draw: Callable[[Any], None], path: Path) -> Path:
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    try:
        with replacing([path]) as (temporary,):
            figure.savefig(temporary, dpi=_DPI, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place.") from None
    return path


def _draw_stages(figure: Any, record: Record) -> None:
    """One bar a stage: seconds of one video, whiskers from min to max."""
    subjects = [subject for subject in record.subjects if subject.unavailable is None]
    names = list(dict.fromkeys(row.name for subject in subjects for row in subject.rows if row.name != VIDEO))
    figure.set_size_inches(8, 1.2 + 0.34 * len(names) * max(1, len(subjects)))
    axes = figure.add_subplot()
    height = 0.8 / max(1, len(subjects))
    for index, subject in enumerate(subjects):
        rows = [subject.row(name) for name in names]
        places = [place + index * height for place in range(len(names))]
        labels = ["" if row is None else seconds(row.median) for row in rows]
        _bars(axes, places, rows, height, _COLOURS[index % len(_COLOURS)], subject.name, labels)
    axes.set_yticks([place + height * (len(subjects) - 1) / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds of one video ({_bars_words(record)})")
    total = ", ".join(
        f"{subject.name}: {seconds(row.median)}" for subject in subjects if (row := subject.row(VIDEO)) is not None
    )
    axes.set_title(f"{record.bundle['name']}: {record.what}\n{total}", loc="left", fontsize=10)
    if len(subjects) > 1:
        axes.legend(loc="lower right", frameon=False)


def _draw_forwards(figure: Any, record: Record) -> None:
    """One bar a row, with its speed-up and its distance from the published formulation."""
    subjects = [subject for subject in record.subjects if subject.unavailable is None]
    figure.set_size_inches(8, 1.2 + 0.45 * max(1, len(subjects)))
    axes = figure.add_subplot()

    def label(subject: Subject) -> str:
        took = seconds(subject.rows[0].median)
        if subject.speed_up is None or subject.relative_l2 is None or subject.name == REFERENCE:
            return took
        return f"{took}, {speed_up_words(record, subject)}, rel. L2 {subject.relative_l2:.0e}"

    for place, subject in enumerate(subjects):
        colour = _GREY if subject.backend.startswith("torch") else _COLOURS[0]
        _bars(axes, [place], [subject.rows[0]], 0.7, colour, None, [label(subject)])
    axes.set_yticks(range(len(subjects)), [f"{subject.name}\n{subject.device}" for subject in subjects])
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds ({_bars_words(record)})")
    axes.set_title(f"{record.bundle['name']}: {record.what}", loc="left", fontsize=10)


def _bars_words(record: Record) -> str:
    rounds = sorted({len(row.seconds) for subject in record.subjects for row in subject.rows})
    return f"median of {' or '.join(map(str, rounds))} rounds; whiskers: min to max"


def _bars(
    axes: Any,
    places: Sequence[float],
    rows: Sequence[Row | None],
    height: float,
    colour: str,
    name: str | None,
    labels: Sequence[str],
) -> None:
    shown = [(place, row, label) for place, row, label in zip(places, rows, labels, strict=True) if row is not None]
    widths = [row.median for _, row, _ in shown]
    low = [row.median - min(row.seconds) for _, row, _ in shown]
    high = [max(row.seconds) - row.median for _, row, _ in shown]
    axes.barh([place for place, _, _ in shown], widths, height * 0.92, color=colour, label=name)
    axes.errorbar(widths, [place for place, _, _ in shown], xerr=[low, high], fmt="none", ecolor="black", elinewidth=1)
    for place, row, label in shown:
        axes.annotate(label, (max(row.seconds), place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    # Room for the labels beside the longest bar.
    longest = max((max(row.seconds) for _, row, _ in shown), default=1.0)
    axes.set_xlim(0, max(axes.get_xlim()[1], longest * 1.8))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scaling(figure: Any, record: Record) -> None:
    """A panel an axis; the dashed line is what strict proportion to the first point would take."""
    points: dict[str, dict[int, Row]] = {}
    for subject in record.subjects:
        for row in subject.rows:
            axis, value = split_name(row.name)
            points.setdefault(axis, {})[value] = row
    shown = [axis for axis in AXES if axis in points]
    columns = min(2, len(shown)) or 1
    lines = -(-len(shown) // columns) or 1
    figure.set_size_inches(4.4 * columns, 3.2 * lines)
    for number, axis in enumerate(shown, start=1):
        panel = figure.add_subplot(lines, columns, number)
        values = sorted(points[axis])
        rows = [points[axis][value] for value in values]
        medians = [row.median for row in rows]
        errors = [[row.median - min(row.seconds) for row in rows], [max(row.seconds) - row.median for row in rows]]
        panel.errorbar(values, medians, yerr=errors, marker="o", color=_COLOURS[0], capsize=3, label="measured")
        work = [(value / values[0]) ** (2 if axis == "resolution" else 1) * medians[0] for value in values]
        proportion = "in proportion to the pixels" if axis == "resolution" else f"in proportion to the {axis}"
        panel.plot(values, work, "--", color=_GREY, label=proportion)
        panel.set_xticks(values)
        panel.set_xlabel(UNITS[axis])
        panel.set_ylabel(f"seconds, {WORK[axis]}")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    title = f"{record.bundle['name']}, {record.subjects[0].name}; {_bars_words(record)}"
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")


def _draw_roofline(figure: Any, prediction: Mapping[str, Any]) -> None:
    gpu, precision = prediction["gpu"], prediction["precision"]
    bandwidth, peaks = gpu["bandwidth"], gpu["peak_flops"]
    rows = [row for row in prediction["unet_kinds"] if row["total"]["flops"] and row["flops_per_byte"]]
    figure.set_size_inches(8, 5)
    axes = figure.add_subplot()
    left = min([row["flops_per_byte"] for row in rows] + [1.0]) / 2
    right = max([row["flops_per_byte"] for row in rows] + [peaks["fp16"] / bandwidth]) * 4
    for accumulation, style in (("fp16", "-"), ("fp32", "--")):
        knee = peaks[accumulation] / bandwidth
        axes.plot(
            [left, knee, right],
            [left * bandwidth / 1e12, peaks[accumulation] / 1e12, peaks[accumulation] / 1e12],
            style,
            color="black",
            label=f"roof, {accumulation.upper()} accumulation: {peaks[accumulation] / 1e12:.3g} TFLOP/s",
        )
    for index, row in enumerate(rows):
        seconds_taken = row["fitted"] or row["stated"]
        reached = row["total"]["flops"] / seconds_taken / 1e12
        colour, marker = _COLOURS[index % len(_COLOURS)], "osD^vP"[index // len(_COLOURS) % 6]
        share = row["total"]["flops"] / sum(entry["total"]["flops"] for entry in rows)
        label = f"{row['total']['kind']} ({share:.0%})"
        axes.plot(row["flops_per_byte"], reached, marker, color=colour, markersize=8, label=label, linestyle="none")
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    for scale in (axes.xaxis, axes.yaxis):
        scale.set_major_formatter("{x:g}")
    axes.set_xlabel("FLOP per byte of memory traffic, ideally fused")
    axes.set_ylabel("TFLOP/s")
    how = "fitted to measured runs" if prediction["fit"] else "at stated efficiencies, a prediction"
    watts = f" at {gpu['power']:g} W" if gpu["power"] else ""
    axes.set_title(
        f"{gpu['name']}{watts}, {precision}, {bandwidth / 1e9:g} GB/s: one U-Net forward by kind of work,\n{how} "
        "(in brackets: share of the FLOPs)",
        loc="left",
        fontsize=10,
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
