"""What a request may say, and what is refused: one sentence, and nothing is queued."""

from __future__ import annotations

import base64
import json
import socket

import pytest


@pytest.fixture
def uri(photo):
    return "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()


def delete(client, answer):
    assert answer.status_code == 200, answer.text
    video = answer.json()
    client.delete(f"/v1/videos/{video['id']}")
    return video


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [
        lambda uri: {"image_reference": {"image_url": uri}},
        lambda uri: {"input_reference": uri},
        lambda uri: {"input_reference": {"image_url": uri}},
        lambda uri: {"reference_url": uri},
    ],
)
def test_json_takes_the_image_as_a_data_uri(client, uri, image):
    body = image(uri) | {"prompt": "zoom in", "extra_body": {"guidance_interval": [0.2, 0.8]}, "steps": 4}
    video = delete(client, client.post("/v1/videos", json=body))
    assert video["settings"]["guidance_interval"] == [0.2, 0.8] and video["steps"] == 4


def test_a_form_is_read_as_its_fields_kinds(client, ask):
    answer = ask(
        client, use_frameinit="FALSE", guidance_scale="2.5", guidance_interval="[0, 0.5]", size="64x64", fps=16
    )
    settings = delete(client, answer)["settings"]
    assert settings["use_frameinit"] is False and settings["guidance_scale_txt"] == 2.5
    assert settings["guidance_interval"] == [0.0, 0.5] and settings["fps"] == 16.0


def test_seconds_and_frames_become_clips(client, ask):
    assert delete(client, ask(client, seconds="4"))["num_frames"] == 31
    video = delete(client, ask(client, num_frames=46))
    assert video["num_frames"] == 46 and video["seconds"] == "5.75" and video["steps"] == 6
    assert delete(client, ask(client, num_frames=28, chain="overlap:4"))["settings"]["autoregress_steps"] == 2


def test_fit_auto_takes_the_bundles_size(client, ask):
    assert delete(client, ask(client, fit="auto"))["size"] == "64x64"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"quality": "hd"}, "field 'quality' is unknown"),
        ({"num_step": 3}, "did you mean num_steps?"),
        ({"steps": 0}, "num_inference_steps 0 is not possible"),
        ({"steps": 201}, "num_inference_steps 201 is more than this server takes: give at most 200."),
        ({"steps": "many"}, "steps 'many' is not possible"),
        ({"clips": 9}, "at most 8"),
        ({"size": "64"}, "give WIDTHxHEIGHT"),
        ({"size": "128x64"}, "this bundle makes 64x64"),
        ({"seconds": "-1"}, "give a number above 0"),
        ({"seconds": 2, "num_frames": 16}, "both say how long"),
        ({"num_frames": 20}, "give 16 or 31."),
        ({"num_videos_per_prompt": 2}, "one video"),
        ({"model": "other"}, "model 'other' is not loaded: choose demo"),
        ({"prompt": "x" * 2001}, "prompt has 2001 characters"),
        ({"seed": "[1, 2]"}, "give one whole number"),
        ({"extra_body": "[]"}, "give a JSON object"),
        ({"extra_body": '{"seed": 1}'}, "seed stands in extra_body and beside it"),
        ({"preset": "best"}, "choose exact, balanced"),
        ({"reference_url": "http://169.254.169.254/"}, "has 2 images"),
    ],
)
def test_what_is_not_possible_is_refused_with_a_sentence(client, ask, fields, told):
    answer = ask(client, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "invalid_request"
    assert told in error["message"] and error["message"].endswith((".", "?")), error


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (json.dumps({"prompt": "x"}).encode(), "has no image"),
        (json.dumps({"input_reference": "data:image/png;base64,?"}).encode(), "not base64"),
        (json.dumps({"input_reference": "file:///etc/passwd"}).encode(), "is no image"),
        (json.dumps({"input_reference": "http://127.0.0.1:1/x.png"}).encode(), "--allow-url"),
        (json.dumps({"input_reference": "http://user@127.0.0.1/x.png"}).encode(), "--allow-url"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_bodies_that_are_refused(client, body, told):
    answer = client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]


def test_what_is_no_route_or_method_is_told_as_an_error(client):
    assert client.get("/v1/videos/../../etc").status_code == 404
    assert client.get("/v1/videos/none").json()["error"]["code"] == "not_found"
    assert client.put("/v1/videos").json()["error"]["code"] == "method_not_allowed"
    assert client.post("/v1/videos", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/v1/videos", params={"limit": "x"}).status_code == 400
    assert client.get("/v1/videos", params={"limit": "101"}).status_code == 400


def test_an_upload_over_the_limit_is_refused_before_it_is_read(client, server):
    """The header alone; then a body in pieces, whose length nobody told."""
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=20) as raw:
        raw.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    pieces = (b"x" * (1 << 20) for _ in range(64))
    answer = client.post("/v1/videos", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_other_sites_and_other_names_are_refused(client, ask):
    """A page of another site may send a form without asking; and may make its own name mean 127.0.0.1."""
    foreign = ask(client, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403 and foreign.json()["error"]["code"] == "wrong_origin"
    assert client.get("/v1/videos", headers={"Host": "evil.example"}).status_code == 421
    assert "access-control-allow-origin" not in client.get("/v1/models").headers


def test_answers_carry_the_security_headers_and_an_id(client):
    headers = client.get("/v1/models", headers={"X-Request-Id": "mine-1"}).headers
    assert headers["x-request-id"] == "mine-1" and headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert client.get("/v1/models", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_capabilities_models_metrics_and_openapi(client):
    capabilities = client.get("/v1/capabilities").json()
    (model,) = capabilities["models"]
    assert model["sizes"] == ["64x64"] and "zoom in" in model["known_prompts"] and model["defaults"]["seed"] is None
    options = {option["name"]: option for option in capabilities["options"]}
    assert options["num_inference_steps"]["minimum"] == 1 and "lcm" in options["scheduler"]["choices"]
    assert capabilities["workers"][0]["ready"] and capabilities["limits"]["steps"] == 200
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["demo"]
    text = client.get("/metrics").text
    for name in ("queue_length", "jobs_running", "time_in_queue_seconds_bucket", "worker_memory_bytes"):
        assert f"consisti2v_{name}" in text
    described = client.get("/openapi.json").json()
    body = described["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["eta"]["maximum"] == 1
    assert described["paths"]["/v1/videos/{video_id}"]["get"]["responses"]["200"]["content"]["application/json"][
        "example"
    ]
