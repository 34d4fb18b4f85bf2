"""Middleware: authentication, allowed origins and size limits of requests, security headers of responses."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logs import Log
from .metrics import Metrics
from .options import MIB, ServerOptions, is_loopback

OPEN_PATHS = ("/health", "/ready")
_BODY_MARGIN = 1 * MIB
"""For a form's other fields, beside the upload."""
_SAFE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as clients of this API know it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "code": code, "param": None}}
    return JSONResponse(body, status, dict(headers or {}))


class Gate:
    """An ASGI application around the API."""

    def __init__(self, inner: ASGIApp, options: ServerOptions, metrics: Metrics, log: Log) -> None:
        self._inner, self._options, self._metrics, self._log = inner, options, metrics, log
        # A page of another site that makes its own name mean 127.0.0.1 would reach a server without a key.
        self._hosts_checked = is_loopback(options.host) and options.api_key is None
        # An image in JSON is base64.
        self._most_bytes = options.max_upload * 4 // 3 + _BODY_MARGIN
        self._too_large = f"the request is too large: an image may have {options.max_upload / MIB:g} MiB."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_ID.fullmatch(given) else secrets.token_hex(8)
        started, status = time.perf_counter(), 499
        origin = self._allowed_origin(headers)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out["x-request-id"] = request_id
                if scope["path"].startswith("/v1"):
                    out.setdefault("cache-control", "no-store")
                if origin is not None:
                    out["access-control-allow-origin"] = origin
                    out["access-control-expose-headers"] = "x-request-id, retry-after"
                    out.add_vary_header("origin")
                else:
                    out["cross-origin-resource-policy"] = "same-origin"
            await send(message)

        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise HTTPException(413, self._too_large)
            return message

        refused = self._refused(scope, headers, origin)
        try:
            if refused is not None:
                await refused(scope, receive, answer)
            else:
                await self._inner(scope, limited, answer)
        finally:
            self._metrics.requests.labels(scope["method"], status).inc()
            # Probes ask every few seconds.
            if scope["path"] not in OPEN_PATHS:
                self._log.info(
                    "request",
                    request=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=time.perf_counter() - started,
                )

    def _allowed_origin(self, headers: Headers) -> str | None:
        """The other site that asks, where it was named."""
        origin = headers.get("origin")
        return origin if origin is not None and origin in self._options.cors else None

    def _refused(self, scope: Scope, headers: Headers, origin: str | None) -> Any:
        """The answer to a request that goes no further."""
        host = headers.get("host", "")
        if self._hosts_checked and not is_loopback(_name_of(host)):
            return refusal(
                421, "wrong_host", "this server is asked under a name that is not this machine's: use 127.0.0.1."
            )
        source = headers.get("origin")
        if source is not None and origin is None and urlsplit(source).netloc != host:
            return refusal(
                403, "wrong_origin", "pages of other sites may not use this server: start it with --cors ORIGIN."
            )
        if origin is not None and scope["method"] == "OPTIONS":
            return _preflight()
        if not self._has_key(scope, headers):
            return refusal(
                401,
                "unauthorized",
                "an API key is needed: send the header Authorization: Bearer KEY.",
                {"www-authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes:
            return refusal(413, "too_large", self._too_large)
        return None

    def _has_key(self, scope: Scope, headers: Headers) -> bool:
        key, path = self._options.api_key, scope["path"]
        # The page itself holds no secret, and asks its user for the key.
        if key is None or path in OPEN_PATHS or not path.startswith(("/v1", "/metrics", "/openapi.json")):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _preflight() -> JSONResponse:
    return JSONResponse(
        {},
        headers={
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": "authorization, content-type, idempotency-key, last-event-id",
            "access-control-max-age": "600",
        },
    )


def _name_of(host: str) -> str:
    """A Host header without its port."""
    return host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]
