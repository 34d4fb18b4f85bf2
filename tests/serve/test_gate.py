"""Keys, other sites, logs: what the gate lets through, around an application that answers everything."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from starlette.responses import PlainTextResponse

from consisti2v_rt.errors import UserError
from consisti2v_rt.serve.fetch import fetch_image
from consisti2v_rt.serve.gate import Gate
from consisti2v_rt.serve.logs import Log
from consisti2v_rt.serve.metrics import Metrics
from consisti2v_rt.serve.options import ServerOptions

KEY = "a key of some length"


@pytest.fixture
def answers(tmp_path):
    """Status and headers of requests through a gate of these options."""

    def make(*requests, base="http://127.0.0.1:8000", **options):
        inner = PlainTextResponse("fine")
        gate = Gate(inner, ServerOptions(bundles=(), data=tmp_path, **options), Metrics(), Log("json"))

        async def run():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url=base) as client:
                return [await client.request(method, path, headers=headers) for method, path, headers in requests]

        return asyncio.run(run())

    return make


def test_a_key_is_needed_for_all_but_the_page_and_the_probes(answers):
    paths = ("/v1/videos", "/metrics", "/openapi.json", "/health", "/ready", "/", "/app.js")
    found = answers(*(("GET", path, {}) for path in paths), api_key=KEY)
    assert [answer.status_code for answer in found] == [401, 401, 401, 200, 200, 200, 200]
    assert found[0].headers["www-authenticate"] == "Bearer" and "Bearer" in found[0].json()["error"]["message"]
    tried = [f"Bearer {KEY}", f"bearer {KEY}", "Bearer another one", f"Basic {KEY}", "Bearer", f"Bearer {KEY}é"]
    found = answers(*(("GET", "/v1/videos", {"Authorization": text.encode()}) for text in tried), api_key=KEY)
    assert [answer.status_code for answer in found] == [200, 200, 401, 401, 401, 401]


def test_only_named_sites_may_ask(answers):
    site = "https://site.example"
    requests = [
        ("POST", "/v1/videos", {"Origin": site}),
        ("OPTIONS", "/v1/videos", {"Origin": site}),
        ("POST", "/v1/videos", {"Origin": "https://other.example"}),
        ("POST", "/v1/videos", {"Origin": "null"}),
        ("POST", "/v1/videos", {"Origin": "http://127.0.0.1:8000"}),
    ]
    named = answers(*requests, cors=(site,))
    assert [answer.status_code for answer in named] == [200, 200, 403, 403, 200]
    assert named[0].headers["access-control-allow-origin"] == site
    assert "authorization" in named[1].headers["access-control-allow-headers"]
    assert [answer.status_code for answer in answers(*requests)] == [403, 403, 403, 403, 200]


def test_a_name_that_is_not_this_machines_is_refused_where_there_is_no_key(answers):
    for base, allowed in (("http://localhost:8000", 200), ("http://[::1]:8000", 200), ("http://evil.example", 421)):
        (answer,) = answers(("GET", "/v1/models", {}), base=base)
        assert answer.status_code == allowed
    (answer,) = answers(("GET", "/v1/models", {"Authorization": f"Bearer {KEY}"}), base="http://a.example", api_key=KEY)
    assert answer.status_code == 200


def test_log_lines_have_no_control_characters(answers, capfd):
    answers(("GET", "/v1/%1b[31m%0a%E2%80%AEx", {"X-Request-Id": "r1"}))
    (line,) = capfd.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["request"] == "r1" and entry["status"] == 200 and entry["path"].isprintable()
    Log().info("event", text="a\x1b[2J\nb")
    assert capfd.readouterr().err.rstrip("\n").isprintable()


class _Host(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "/image")
        self.end_headers()
        self.wfile.write(b"x" * (2000 if self.path == "/large" else 10))

    def log_message(self, *arguments):
        pass


def test_images_are_fetched_from_named_hosts_alone():
    with HTTPServer(("127.0.0.1", 0), _Host) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        name = f"127.0.0.1:{host.server_port}"
        assert fetch_image(f"http://{name}/image", [name], 1000) == b"x" * 10
        for path, hosts, told in (
            ("/image", ["other.example"], "--allow-url"),
            ("/moved", [name], "answered 302"),
            ("/large", [name], "larger than"),
        ):
            with pytest.raises(UserError, match=told):
                fetch_image(f"http://{name}{path}", hosts, 1000)
        host.shutdown()
