"""Records as tables and sentences, for a terminal and as Markdown: one content in two forms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .candidates import REFERENCE
from .record import Record, Row, Target
from .statistics import (
    FEW_ROUNDS,
    FEWEST_ROUNDS,
    INTERVAL,
    cell,
    gibibytes,
    interval_words,
    ratio_interval,
    ratio_words,
    rounds_words,
    seconds,
    three_digits,
)

VIDEO = "video"
STAGES = {
    "image": "photo",
    "load": "load",
    "text_encoder": "text encoder",
    "conditioning": "conditioning",
    "vae_encoder": "VAE encoder",
    "noise": "noise",
    "frame_init": "FrameInit",
    "unet": "U-Net",
    "loop": "guidance and scheduler",
    "vae_decoder": "VAE decoder",
    "file": "file",
}
"""The pipeline's names of its stages -> a reader's, in the order they run."""
_UNITS = {"frames": "frames", "resolution": "pixels a side", "batch": "rows"}
AXES = {**{axis: (unit, "one U-Net forward") for axis, unit in _UNITS.items()}, "steps": ("steps", "one video")}
"""Of a scaling: unit, and what is timed."""


def split_name(row: str) -> tuple[str, int]:
    """``frames 16`` -> axis and value."""
    axis, _, value = row.partition(" ")
    return axis, int(value)


def record_tables(record: Record) -> list[list[list[str]]]:
    """Tables of a record, each a list of lines of cells with the headers first."""
    measured = ["median", INTERVAL, "rounds"]
    if record.kind == "latency":
        return [
            [[target.name, *measured, "share", ""], *_stage_rows(target)]
            for target in record.able
            if target.row(VIDEO) is not None
        ]
    if record.kind == "side_by_side":
        rows = [
            [
                *(target.name, *_measured(target.rows[0])),
                *(speed_up_words(record, target), _distance(target), _memory_words(target)),
            ]
            for target in record.able
        ]
        return [[["", *measured, "speed-up", "relative L2", "peak memory"], *rows]]
    points = [(*split_name(row.name), row) for target in record.targets for row in target.rows]
    rows = [[f"{AXES[axis][0]} {value} ({AXES[axis][1]})", *_measured(row)] for axis, value, row in points]
    return [[["", *measured], *rows]]


def _stage_rows(target: Target) -> Iterable[list[str]]:
    video = target.row(VIDEO)
    assert video is not None
    for row in target.rows:
        runs = f"{row.runs} x {seconds(row.median / row.runs)}" if row.runs > 1 else ""
        yield [row.name, *_measured(row), f"{row.median / video.median:.1%}", runs]


def _measured(row: Row) -> list[str]:
    return [seconds(row.median), interval_words(row.seconds), rounds_words(row.seconds)]


def speed_up_words(record: Record, target: Target) -> str:
    """``1.66x (1.52 to 1.80)`` over the published formulation; empty where that was not measured."""
    if target.speed_up is None:
        return ""
    if target.name == REFERENCE:
        return "1.00x"
    found = None
    # Loaded together, round n of every target followed on round n of the one before it.
    paired = bool(record.settings.get("resident"))
    for reference in record.targets:
        if reference.name == REFERENCE and reference.rows:
            found = ratio_interval(reference.rows[0].seconds, target.rows[0].seconds, paired=paired)
    return f"{target.speed_up:.2f}x ({ratio_words(found)})"


def _distance(target: Target) -> str:
    """Relative L2 against the float32 published formulation; of that itself, its name."""
    if target.name == REFERENCE:
        return "reference"
    return "" if target.relative_l2 is None else f"{target.relative_l2:.1e}"


def _memory_words(target: Target) -> str:
    device = target.device_peak_bytes
    return gibibytes(target.host_peak_bytes or 0) + ("" if device is None else f", {gibibytes(device)} on the device")


def metadata(record: Record) -> list[str]:
    """Of whole videos: frames a second, cost of the first run, memory, energy and installed size, one sentence each."""
    lines = []
    for target, video in ((target, target.row(VIDEO)) for target in record.targets):
        if record.kind != "latency" or video is None:
            continue
        median, first, load = video.median, target.first, target.row("load")
        rate = record.bundle["frames"] / median
        lines.append(
            f"{target.name}: {seconds(median)} a video ({interval_words(video.seconds)}), {rate:.2f} frames a second."
        )
        lines.append(
            f"Spent once: start {seconds(first['start'])}, bundle opened and verified {seconds(first['open'])}, stages "
            f"loaded {seconds(first['load'])}, first run {seconds(first['first_run'])} longer than later ones."
        )
        if load is not None:
            lines.append(f"Loading in a later video: {seconds(load.median)}.")
        unet, loop = target.row("U-Net"), target.row("guidance and scheduler")
        if unet is not None and loop is not None and unet.median + loop.median > 0:
            steps = [inside + outside for inside, outside in zip(unet.seconds, loop.seconds, strict=True)]
            share = loop.median / statistics.median(steps)
            words = ratio_words(ratio_interval(loop.seconds, steps, paired=True), "{:.2%}")
            lines.append(f"Of a step, {share:.2%} ({words}) is spent outside the U-Net's session.")
        lines.append(f"Peak memory: {_memory_words(target)}.")
        if target.energy_joules:
            joules = interval_words(target.energy_joules, lambda value: f"{value:.1f} J")
            lines.append(f"Energy: {statistics.median(target.energy_joules):.1f} J a video ({joules}).")
    if record.kind == "latency":
        total, *largest = (
            f"{three_digits(size / 2**20)} MiB"
            for size in (sum(record.runtime_bytes.values()), *list(record.runtime_bytes.values())[:4])
        )
        named = ", ".join(" ".join(pair) for pair in zip(record.runtime_bytes, largest, strict=False))
        lines.append(f"Installed size of the runtime: {total} ({named}, ...).")
    return lines


def notes(record: Record) -> list[str]:
    """What was not measured and why, what few rounds mean, and the machine."""
    reasons: dict[str, list[str]] = {}
    for target in record.targets:
        if target.unavailable is not None:
            reasons.setdefault(target.unavailable.rstrip("."), []).append(target.name)
        # Of a scaling, single points may fail: too large for the memory, for example.
        for point, reason in target.metadata.get("failed", {}).items():
            reasons.setdefault(reason.rstrip("."), []).append(point)
    lines = [f"Not measured: {', '.join(held)}: {reason}." for reason, held in reasons.items()]
    if any(len(row.seconds) < FEWEST_ROUNDS for target in record.targets for row in target.rows):
        lines.append(FEW_ROUNDS)
    machine, versions = record.machine, ", ".join(f"{name} {version}" for name, version in record.versions.items())
    gpus = "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    memory = gibibytes(machine["memory_bytes"])
    place = f"{machine['cpu']}, {machine['usable_cores']} cores, {memory}, {machine['system']}{gpus}"
    return [*lines, f"Measured on {place}; {versions}."]


# -- the two forms -----------------------------------------------------------------------------------------------------


def show(record: Record, console: Console) -> None:
    """Print a record."""
    console.print(f"[bold]{escape(record.bundle['name'])}[/]: {escape(record.what)}", highlight=False)
    for headers, *rows in record_tables(record):
        console.print(rich_table("", headers, ([escape(cell(text)) for text in row] for row in rows), pad=0))
    for line in (*metadata(record), *notes(record)):
        console.print(escape(line), highlight=False)


def rich_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, pad: int = 1) -> Table:
    """A plain table, narrow enough for a terminal of 80 columns: names on the left, numbers, `pad` blanks between."""
    style: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, pad, 0, 0)}
    table = Table(title=title or None, title_justify="left", **style)
    for index, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def record_section(record: Record, link: str, picture: str) -> str:
    """A record's heading, tables, facts and picture as Markdown; `link` and `picture` are paths from the file."""
    title = f"{record.bundle['name']}: {record.what}"
    parts = [
        [f"**{title}** ([record]({link}))"],
        *map(_markdown, record_tables(record)),
        *([[f"- {line}" for line in metadata(record)]] if metadata(record) else []),
        [f"- {line}" for line in notes(record)],
        [f"![{title}]({picture})"],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def prediction_section(prediction: Mapping[str, Any], link: str, picture: str) -> str:
    """A prediction's summary and its roofline as Markdown."""
    title = prediction_title(prediction)
    columns = {"floor_fp16": "roofline floor", "stated": "stated efficiencies"}
    rows = [
        [f"{video['name']}: {video['steps']} steps", *(f"{video[column]:.1f} s" for column in columns)]
        for video in prediction["videos"]
    ]
    parts = [
        [f"**Predicted, not measured: {title}** ([numbers]({link}))"],
        _markdown([["", *columns.values()], *rows]),
        [f"- {sentence}" for sentence in prediction["summary"][1:]],
        [f"![Roofline, {title}]({picture})"],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def prediction_title(prediction: Mapping[str, Any]) -> str:
    """``RTX 4060 Laptop at 50 W, fp16``."""
    gpu = prediction["gpu"]
    watts = f" at {gpu['power']:g} W" if gpu["power"] else ""
    return f"{gpu['name']}{watts}, {prediction['precision']}"


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    headers, *rows = table
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *rows]
    return [f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines]
