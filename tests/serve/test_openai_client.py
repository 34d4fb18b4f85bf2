"""The official client of the API, as it is."""

from __future__ import annotations

import pytest

openai = pytest.importorskip("openai")


@pytest.mark.slow
def test_create_poll_download_list_and_delete(server, photo):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    with photo.open("rb") as file:
        video = client.videos.create(
            prompt="zoom in", input_reference=file, seconds="2", size="64x64", extra_body={"seed": 7, "steps": 2}
        )
    assert video.status in ("queued", "in_progress") and video.seconds == "2"
    done = client.videos.poll(video.id, poll_interval_ms=50)
    assert done.status == "completed" and done.progress == 100
    content = client.videos.download_content(video.id)
    assert content.read()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="thumbnail").read().startswith(b"RIFF")
    assert video.id in [one.id for one in client.videos.list(limit=5)]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError, match="has no image"):
        client.videos.create(prompt="zoom in")
