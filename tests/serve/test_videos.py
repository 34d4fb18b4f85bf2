"""A video from the request to the file: same frames as the library, events without gaps, lists, cancellation."""

from __future__ import annotations

import base64
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from consisti2v_rt import ImageToVideo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library():
    with ImageToVideo.from_bundle("demo") as model:
        yield model


def frames_of(client, video_id):
    """The frames of a finished video, uint8 [frames, height, width, 3]."""
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/videos/{video_id}/content?format=png-zip").content))
    return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist())])


def test_a_video_is_the_librarys(client, ask, events, library, photo):
    """A form; every step is told, the preview is a picture, and the frames are equal to the bit."""
    video = ask(client, steps=3, extra_body='{"frame_stride": 2}').json()
    assert video["object"] == "video" and video["steps"] == 3 and video["settings"]["frame_stride"] == 2
    with events(client, video["id"]) as stream:
        told = list(stream)
    names = [name for _, name, _ in told if name != "queued"]
    assert names == ["started", "step", "step", "step", "decoding", "completed"]
    ids = [int(number) for number, name, _ in told if name != "queued"]
    assert ids == sorted(set(ids))
    steps = [data for _, name, data in told if name == "step"]
    assert [data["step"] for data in steps] == [1, 2, 3] and [data["progress"] for data in steps] == [33, 66, 100]
    uri = next(data["preview"] for data in reversed(steps) if "preview" in data)
    assert len(uri) < 8000
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (128, 128)
    done = told[-1][2]
    assert done["status"] == "completed" and done["progress"] == 100 and done["timings"]["unet"] > 0
    expected = library(photo, "zoom in", seed=7, num_inference_steps=3, frame_stride=2)
    assert np.array_equal(frames_of(client, video["id"]), expected[0])

    # A client that returns gets what it missed, and one that missed nothing gets the result alone.
    with events(client, video["id"], **{"Last-Event-ID": str(ids[2])}) as stream:
        assert [name for _, name, _ in stream] == ["step", "decoding", "completed"]


def test_every_format_and_ranges(client, ask, finished, tmp_path):
    video = finished(client, ask(client).json()["id"])
    address = f"/v1/videos/{video['id']}/content"
    whole = client.get(address).content
    part = client.get(address, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == whole[10:20]
    for name, start in (("gif", b"GIF89a"), ("webp", b"RIFF"), ("png-zip", b"PK")):
        answer = client.get(address, params={"format": name})
        assert answer.status_code == 200 and answer.content.startswith(start)
        # Made once, the same afterwards.
        assert client.get(address, params={"format": name}).content == answer.content
    assert Image.open(io.BytesIO(client.get(address, params={"variant": "thumbnail"}).content)).size == (64, 64)
    assert client.get(address, params={"format": "avi"}).json()["error"]["message"].endswith("png-zip.")


def test_cancel_and_delete(client, ask, events, finished):
    video = ask(client, steps=200).json()
    assert client.get(f"/v1/videos/{video['id']}/content").status_code == 404
    with events(client, video["id"]) as stream:
        next(name for _, name, _ in stream if name == "step")
        answer = client.post(f"/v1/videos/{video['id']}/cancel")
        assert answer.json()["status"] == "cancelling"
        after = [name for _, name, _ in stream]
    # Within an operation: no more than the step that ran is told.
    assert after[-1] == "cancelled" and after.count("step") <= 1
    assert client.get(f"/v1/videos/{video['id']}").json()["status"] == "cancelled"

    running = ask(client, steps=200).json()["id"]
    waiting = ask(client, steps=2, seed=8).json()["id"]
    assert client.get(f"/v1/videos/{waiting}").json()["queue_position"] in (0, None)
    assert client.delete(f"/v1/videos/{running}").json() == {
        "id": running,
        "object": "video.deleted",
        "deleted": True,
    }
    assert client.get(f"/v1/videos/{running}").status_code == 404
    assert finished(client, waiting)["status"] == "completed"


def test_lists_page_by_page(client, ask, finished):
    ids = [ask(client, seed=seed).json()["id"] for seed in (1, 2, 3)]
    for one in ids:
        finished(client, one)
    newest = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in newest["data"]] == ids[:0:-1] and newest["has_more"]
    older = client.get("/v1/videos", params={"limit": 1, "after": ids[1]}).json()
    assert [video["id"] for video in older["data"]] == ids[:1]
    oldest = client.get("/v1/videos", params={"order": "asc", "after": ids[0]}).json()
    assert [video["id"] for video in oldest["data"]] == ids[1:] and not oldest["has_more"]


def test_a_batch_gives_what_single_requests_give(client, ask, finished, library, photo, server):
    """Three requests wait behind another one and run as one call."""
    first = ask(client, steps=6).json()["id"]
    waiting = [
        ask(client, seed=seed, prompt=prompt).json()["id"] for seed, prompt in ((1, "pan left"), (2, "zoom out"))
    ]
    for one in (first, *waiting):
        assert finished(client, one)["status"] == "completed"
    started = {client.get(f"/v1/videos/{one}").json()["timings"]["unet"] for one in waiting}
    assert len(started) == 1, "the two were not one call"
    for one, seed, prompt in zip(waiting, (1, 2), ("pan left", "zoom out"), strict=True):
        expected = library(photo, prompt, seed=seed, num_inference_steps=2)
        assert np.array_equal(frames_of(client, one), expected[0])


def test_sync_answers_with_the_video(client, ask):
    answer = ask(client, "/v1/videos/sync")
    assert answer.headers["content-type"] == "video/mp4" and float(answer.headers["x-inference-time-s"]) > 0
    assert client.get(f"/v1/videos/{answer.headers['x-video-id']}/content").content == answer.content


def test_a_repeated_request_makes_one_video(client, ask):
    headers = {"Idempotency-Key": "the same"}
    first, second = (ask(client, headers=headers).json()["id"] for _ in range(2))
    assert first == second


def test_a_photo_that_is_none_fails_with_a_sentence(client, finished):
    answer = client.post("/v1/videos", files={"input_reference": b"not a photo"}, data={"steps": "2"})
    done = finished(client, answer.json()["id"])
    assert done["status"] == "failed" and done["error"]["code"] == "invalid_image"
    assert done["error"]["message"].endswith(".") and "/" not in done["error"]["message"]
    sync = client.post("/v1/videos/sync", files={"input_reference": b"not a photo"}, data={"steps": "2"})
    assert sync.status_code == 400


def test_a_full_queue_says_when_to_come_again(client, ask):
    """The server takes eight that wait; one runs."""
    answers = [ask(client, steps=100 + number) for number in range(10)]
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    full = [answer for answer in answers if answer.status_code == 429]
    for one in reversed(taken):
        client.delete(f"/v1/videos/{one}")
    assert 8 <= len(taken) <= 9 and full
    assert int(full[0].headers["retry-after"]) >= 1 and full[0].json()["error"]["code"] == "queue_full"
