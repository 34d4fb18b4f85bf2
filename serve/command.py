"""``consisti2v serve``: the options of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..runtime.bundle.home import DEMO
from ..runtime.commands.console import make_console, note, plain
from ..runtime.install import install_hint
from ..runtime.request.option_table import check_threads, one_of
from .options import GIB, MIB, ServerOptions, check_options, parse_keep, parse_loras

_KEY_VARIABLE = "CONSISTI2V_API_KEY"


def serve(
    bundle: Annotated[
        list[str] | None,
        typer.Option("--bundle", "-b", help="Folder or name of a bundle; may be repeated. Default: the demo."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="Folder of queue, photos and videos. Default: one in the user's data folder.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="auto, cpu, openvino, cuda or cuda:N; repeated, each gets a worker process."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16, int8 or fp8; the device's best.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads of a worker; one per core if absent.")] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Most jobs that wait; beyond it: 429.")] = 100,
    max_batch: Annotated[int, typer.Option(min=1, help="Most jobs of equal settings that run as one call.")] = 1,
    keep: Annotated[
        list[str] | None, typer.Option(help="How long, or how much, finished jobs stay: 24h, 10GB; may be repeated.")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Most of one video; 0: no limit.")] = 3600,
    memory_limit: Annotated[
        float | None, typer.Option(min=0.1, metavar="GIB", help="A worker that takes more is ended.")
    ] = None,
    max_upload: Annotated[float, typer.Option(min=0.01, metavar="MIB", help="Largest image file.")] = 32,
    max_image_pixels: Annotated[int, typer.Option(min=256, help="Most pixels of a photo.")] = 50_000_000,
    max_frame_pixels: Annotated[int, typer.Option(min=256, help="Most pixels of a frame of the video.")] = 1024 * 1024,
    max_steps: Annotated[int, typer.Option(min=1, help="Most denoising steps.")] = 200,
    max_clips: Annotated[int, typer.Option(min=1, help="Most clips of a long video.")] = 8,
    max_prompt: Annotated[int, typer.Option(min=1, help="Most characters of a prompt.")] = 2000,
    previews: Annotated[bool, typer.Option(help="Send a small picture with the steps.")] = True,
    drain: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for the running job when the server is stopped.")
    ] = 10,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=_KEY_VARIABLE, help="Key that clients must send; other users may see a command line."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is the key.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Serve other machines without a key.")] = False,
    allow_url: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Host that images may be fetched from; may be repeated.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="LoRA that clients may have merged, by its name; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Site whose pages may use the API; may be repeated.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run the models on a Ray cluster: its address, auto, or local (no address) to start one here. Needs "
            "the extra 'ray'.",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=1024, help="With --ray: most replicas of the models; one per GPU.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="lines or json.")] = "lines",
    verify: Annotated[bool, typer.Option(help="Hash what is used of the bundles first.")] = True,
) -> None:
    """Serve the video API and a page to use it; models are loaded once and stay."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import psutil  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"'consisti2v serve' needs packages that are not installed ({error}): {install_hint('serve')}."
        ) from None
    from .app import serve as run
    from .logs import FORMATS, Log

    one_of(log_format, "--log-format", FORMATS)
    check_threads(threads)
    devices = tuple(device or ["auto"])
    for name in devices:
        kind, colon, index = name.partition(":")
        if kind not in ("auto", "cpu", "openvino", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
            raise UserError(f"--device {name} is unknown: choose auto, cpu, openvino, cuda or cuda:N.")
    limits: Any = parse_keep(keep or [])
    options = ServerOptions(
        bundles=tuple(bundle or [DEMO]),
        data=(data or _data_folder()).absolute(),
        host=host,
        port=port,
        devices=devices,
        precision=precision,
        threads=threads,
        verify=verify,
        previews=previews,
        max_queue=max_queue,
        max_batch=max_batch,
        time_limit=time_limit,
        memory_limit=None if memory_limit is None else memory_limit * GIB,
        max_upload=int(max_upload * MIB),
        max_image_pixels=max_image_pixels,
        max_frame_pixels=max_frame_pixels,
        max_steps=max_steps,
        max_clips=max_clips,
        max_prompt=max_prompt,
        drain=drain,
        api_key=_key(api_key, api_key_file),
        allow_urls=tuple(allow_url or ()),
        loras=parse_loras(lora or []),
        cors=tuple(cors or ()),
        **limits,
    )
    check_options(options, no_auth=no_auth)
    console = make_console(stderr=True)
    if ray is not None:
        from .on_ray import serve_on_ray

        if not port:
            raise UserError("--port 0 does not go with --ray: give the port that the cluster's proxies listen at.")
        if lora:
            raise UserError("--lora does not go with --ray: merge with 'consisti2v lora', and serve that bundle.")

        def ready(address: str) -> None:
            note(console, f"ready at {plain(address)}", "serve:", "bold green")

        serve_on_ray(options, log_format, ray, replicas, ready)
        return
    if replicas is not None:
        raise UserError("--replicas is for --ray: leave it out, or repeat --device for more workers.")
    run(
        options,
        Log(log_format),
        lambda address: note(console, f"{plain(address)} loads {', '.join(options.bundles)}", "serve:"),
        lambda address: note(console, f"ready at {plain(address)}", "serve:", "bold green"),
    )


def _data_folder() -> Path:
    import platformdirs

    return platformdirs.user_data_path("consisti2v", appauthor=False) / "serve"


def _key(key: str | None, file: Path | None) -> str | None:
    """The key, from wherever it was given."""
    if file is not None:
        if key is not None:
            raise UserError(f"a key was given twice: give --api-key-file, or --api-key or {_KEY_VARIABLE}.")
        try:
            key = file.read_text(encoding="utf-8").splitlines()[0].strip()
        except (OSError, ValueError, IndexError):
            raise UserError(
                f'--api-key-file "{file}" cannot be read: give a text file whose first line is it.'
            ) from None
    if key is not None and len(key) < 8:
        raise UserError("the API key is too short: give at least 8 characters.")
    return key
