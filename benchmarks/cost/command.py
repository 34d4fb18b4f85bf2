"""``consisti2v bench --predict GPU``: what a video costs and how long a GPU would take."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer


def predict(
    gpu: Annotated[
        str,
        typer.Argument(
            help="Name, such as rtx-4060-laptop, rtx5090 or h100 (docs/gpus.md lists all), or any with flags."
        ),
    ] = "rtx-4060-laptop",
    power: Annotated[float | None, typer.Option(help="Power limit in watts; 50 for the laptop card.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help="Bundle (folder or name), or saved costs; the published size if absent."),
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="Denoising steps instead of the presets; may be repeated.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16, fp8 or fp32.")] = "fp16",
    architecture: Annotated[str | None, typer.Option(help="Any GPU: turing, ampere, ada, blackwell or hopper.")] = None,
    sm: Annotated[int | None, typer.Option(help="Any GPU: streaming multiprocessors.")] = None,
    clock: Annotated[float | None, typer.Option(help="Any GPU: GHz.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Any GPU: GB/s.")] = None,
    memory: Annotated[float | None, typer.Option(help="Any GPU: GiB.")] = None,
    save_costs: Annotated[Path | None, typer.Option(help="Write the counted costs as a small table.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file, which 'bench report' draws a roofline from.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict seconds and memory from the graph's FLOPs and traffic. No GPU is needed."""
    from ...errors import UserError
    from ...runtime.commands.console import echo, make_console, plain
    from ...runtime.request.option_table import whole
    from ..bench.record import write_text
    from .gpus import PRECISIONS, describe_gpu
    from .prediction import as_json, plan_of_steps, predict_model, preset_plans, print_report
    from .work import FULL_SIZE, load_costs, save_table

    for count in steps or ():
        whole(count, "steps", 1, 1000)
    if precision not in PRECISIONS:
        raise UserError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    flags = {"architecture": architecture, "multiprocessors": sm, "clock_ghz": clock, "bandwidth_gb": bandwidth}
    described = describe_gpu(gpu, power, **flags, memory_gb=memory)  # type: ignore[arg-type]
    costs = load_costs(bundle or FULL_SIZE)
    if save_costs is not None:
        try:
            save_table(costs, save_costs)
        except OSError as error:
            raise UserError(f"{save_costs} cannot be written ({error.strerror}): choose another place.") from None
    plans = [plan_of_steps(count) for count in steps] if steps else preset_plans(costs.guidance)
    prediction = predict_model(costs, described, precision, plans)
    text = json_text.dumps(as_json(prediction), indent=2)
    if output is not None:
        write_text(output, text + "\n")
    if json:
        echo(text)
    elif output is not None:
        echo(plain(output))
    else:
        # Names of GPUs and bundles may hold brackets: they are text, not markup.
        print_report(prediction, make_console())
