"""Records become pictures and Markdown; the README takes the Markdown in between two marks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.files.guarded_read import RECORD, REPORT, read_json, read_text
from .markdown import prediction_section, record_section
from .plots import plot_record, plot_roofline
from .record import check_writable, read_record, write_text

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def write_report(records: Sequence[Path], target: Path) -> list[Path]:
    """Draw every record's picture beside it and write the Markdown.

    Args:
        records: JSON files of ``bench`` and ``bench predict``, in the order they are to appear.
        target: a Markdown file. One that holds the two marks keeps everything outside them; any other is written
            whole.

    Returns:
        What was written.

    Raises:
        UserError: a file that is neither, or a place that cannot be written.
    """
    check_writable(target)
    written = []
    sections = []
    for path in records:
        picture = path.with_suffix(".png")
        check_writable(picture)
        link, shown = (Path(os.path.relpath(file, target.parent)).as_posix() for file in (path, picture))
        prediction = _read_prediction(path)
        if prediction is not None:
            sections.append(prediction_section(prediction, link, shown))
            plot_roofline(prediction, picture)
        else:
            record = read_record(path)
            sections.append(record_section(record, link, shown))
            plot_record(record, picture)
        written.append(picture)
    write_text(target, _placed("\n".join(sections), target))
    return [*written, target]


def replace_block(text: str, block: str, name: str) -> str:
    """`text` with what stands between the marks replaced.

    Raises:
        UserError: a mark is missing, there more than once, or they are the wrong way round.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{name} must hold the line {BEGIN} and below it the line {END}, each once: put them in.")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"


def _placed(block: str, target: Path) -> str:
    """What the whole file is to hold."""
    text = read_text(target, REPORT) if target.exists() else ""
    if BEGIN in text or END in text or target.name.lower().startswith("readme"):
        return replace_block(text, block, str(target))
    return f"# Measurements\n\n{block.strip()}\n"


def _read_prediction(path: Path) -> dict[str, Any] | None:
    """A prediction as ``bench predict`` writes it; None for anything else."""
    try:
        data = read_json(path, RECORD)
    except UserError:
        return None
    wanted = {"gpu", "videos", "unet_kinds", "precision", "fit", "summary"}
    return data if isinstance(data, dict) and data.get("prediction") is True and wanted <= data.keys() else None
