"""The HTTP application, and the process that serves it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from .. import __version__
from ..errors import UserError
from ..locations import ASSETS
from ..runtime.files.file_lock import locked
from .dispatcher import Dispatcher
from .gate import Gate
from .logs import Log
from .metrics import Metrics
from .models import open_models
from .options import ServerOptions
from .refusals import QueueFullError, StoppingError
from .routes import answer_error, make_router
from .schema import VIDEO_SCHEMA
from .store import JobStore

PAGE = Path(__file__).parent / "page"
_CLOSE_SECONDS = 5
"""That open connections get after the last job."""


def make_app(dispatcher: Dispatcher, log: Log) -> Gate:
    """The ASGI application on a dispatcher."""
    # No pages of its own: theirs load scripts from elsewhere.
    app = FastAPI(title="consisti2v-rt", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(make_router(dispatcher))

    async def handle(request: Request, error: Exception) -> Response:
        answer = await answer_error(request, error)
        if answer.status_code == 500 or answer.status_code == 507:
            log.error("request failed", path=request.url.path, reason=f"{type(error).__name__}: {error}")
        return answer

    for kind in (UserError, RequestValidationError, QueueFullError, StoppingError, HTTPException, OSError, Exception):
        app.add_exception_handler(kind, handle)

    @app.get("/example.jpg", include_in_schema=False)
    async def example() -> Response:
        return FileResponse(ASSETS / "example.jpg")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    described = app.openapi

    def openapi() -> dict[str, Any]:
        text = described()
        text.setdefault("components", {}).setdefault("schemas", {})["Video"] = VIDEO_SCHEMA
        return text

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(app, dispatcher.options, dispatcher.metrics, log)


class _Server(uvicorn.Server):
    """Ends its jobs before it waits for its connections, which wait for jobs."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._dispatcher.stop()
        await super().shutdown(sockets)


def serve(options: ServerOptions, log: Log, on_address: Callable[[str], None], on_ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        on_address: told the address once it is bound; workers still load.
        on_ready: told the address once every worker is warm.

    Raises:
        UserError: the address is taken, the folder is in use or cannot be written, or a bundle cannot be loaded.
    """
    models = open_models(options.bundles)
    with _bound(options) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        store = JobStore(options.data)

        def refuse(holder: str) -> None:
            raise UserError(
                f'the folder "{options.data}" is used by another server ({holder}): choose another one with --data.'
            )

        try:
            with locked(options.data / "lock", refuse):
                asyncio.run(
                    _run(
                        options,
                        Dispatcher(options, models, store, Metrics(), log),
                        log,
                        listening,
                        lambda: on_address(address),
                        lambda: on_ready(address),
                    )
                )
        finally:
            store.close()


def _bound(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"the address {options.host}:{options.port} cannot be used ({error.strerror or error}): choose another one "
            "with --host and --port."
        ) from None
    return listening


async def _run(
    options: ServerOptions,
    dispatcher: Dispatcher,
    log: Log,
    listening: socket.socket,
    on_address: Callable[[], None],
    on_ready: Callable[[], None],
) -> None:
    config = uvicorn.Config(
        make_app(dispatcher, log),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        # A client that sends headers without end, or nothing at all.
        h11_max_incomplete_event_size=64 * 1024,
        timeout_keep_alive=75,
    )
    server = _Server(config, dispatcher)
    # uvicorn takes Ctrl-C and SIGTERM itself; a terminal that closes ends the server in the same way.
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(hangup, lambda: setattr(server, "should_exit", True))
    on_address()
    refused: list[UserError] = []

    async def load() -> None:
        try:
            await dispatcher.start()
        except UserError as error:
            refused.append(error)
            server.should_exit = True
        else:
            on_ready()

    loading = asyncio.create_task(load())
    try:
        await server.serve(sockets=[listening])
    finally:
        loading.cancel()
    if refused:
        raise refused[0]
