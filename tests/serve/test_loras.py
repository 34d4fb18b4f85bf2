"""Other weights without a restart: LoRAs by the names that the operator gave, and bundles replaced on disk."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from consisti2v_rt import ImageToVideo  # noqa: E402
from consisti2v_rt.export.lora.files import LoraRequest  # noqa: E402
from consisti2v_rt.export.lora.merge import merge_into_bundle  # noqa: E402
from consisti2v_rt.export.weight_map import read_weight_map  # noqa: E402
from consisti2v_rt.runtime.bundle.bundle import Bundle  # noqa: E402
from consisti2v_rt.tests.serve.conftest import Server, start_server  # noqa: E402

pytestmark = pytest.mark.rare


@pytest.fixture(scope="module")
def files(tiny_bundle, tmp_path_factory) -> dict[str, Path]:
    """Two LoRAs of every layer, one that no video survives, and one of another model."""
    folder, generator = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(0)
    shapes = {
        layer: weight.shape for layer, weight in read_weight_map(Bundle.open(tiny_bundle)).items() if weight.places
    }
    for name, size in (("style", 0.3), ("motion", 0.3), ("wild", 1e18)):
        tensors = {}
        for layer, shape in shapes.items():
            up = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator)
            down = torch.randn(2, *shape[1:], generator=generator)
            tensors |= {f"{layer}.lora_B.weight": up * size, f"{layer}.lora_A.weight": down * size}
        save_file(tensors, folder / f"{name}.safetensors")
    save_file({"unet.other.lora_A.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def named(files) -> list[str]:
    return [word for name, path in files.items() for word in ("--lora", f"{name}={path}")]


@pytest.fixture(scope="module")
def server(tiny_bundle, named, tmp_path_factory) -> Any:
    """In place of the server of all tests: a worker with the tiny bundle, which LoRAs fit."""
    data = tmp_path_factory.mktemp("loras-served") / "data"
    running = start_server(data, "-b", str(tiny_bundle), "--threads", "1", *named)
    yield running
    running.stop()


@pytest.fixture
def make(ask, finished):
    """Make a video; its content and its object."""

    def run(client: Any, **fields: Any) -> tuple[bytes, Any]:
        video = finished(client, ask(client, **fields).json()["id"])
        assert video["status"] == "completed", video
        return client.get(f"/v1/videos/{video['id']}/content").content, video

    return run


def set_lora(client: Any, **fields: Any) -> Any:
    return client.post("/v1/set_lora", json=fields)


def unmerge(client: Any) -> Any:
    return client.post("/v1/unmerge_lora_weights")


def worker_of(server: Server) -> psutil.Process:
    (worker,) = psutil.Process(server.process.pid).children()
    return worker


def test_a_b_a_and_back_to_the_bundle_s_own_weights(client, make, files, tiny_bundle, tmp_path, photo):
    base, video = make(client)
    assert video["loras"] == [] and video["weights"] == Bundle.open(tiny_bundle).digest
    answer = set_lora(client, lora_nickname="style", strength=0.5)
    assert answer.status_code == 200 and answer.json()["status"] == "ok", answer.text
    styled, video = make(client)
    assert video["loras"] == [{"name": "style", "strength": 0.5}] and video["weights"] == answer.json()["weights"]
    both = set_lora(
        client, lora_nickname=["style", "motion"], lora_path=[None, "motion"], strength=[0.5, -1], target="all"
    )
    assert both.json()["active"]["transformer"][1] == {
        "nickname": "motion",
        "path": "motion",
        "merged": True,
        "strength": -1.0,
    }
    mixed, _ = make(client)
    started = time.monotonic()
    assert set_lora(client, lora_nickname="style", strength=0.5).json()["weights"] == video["weights"]
    print(f"a set that was merged before took {time.monotonic() - started:.2f} s")
    again, _ = make(client)
    answer = unmerge(client).json()
    assert answer["active"] == {"transformer": []} and answer["weights"] == Bundle.open(tiny_bundle).digest
    back, _ = make(client)
    assert (again, back) == (styled, base) and len({base, styled, mixed}) == 3
    listed = client.get("/v1/list_loras").json()
    assert {entry["nickname"] for entry in listed["loaded_adapters"]} == files.keys() and str(
        files["style"]
    ) not in str(listed)
    merged = merge_into_bundle(tiny_bundle, [LoraRequest(files["style"], 0.5)], tmp_path / "merged")
    with ImageToVideo.from_bundle(merged, threads=1) as animate:
        animate(photo, "zoom in", seed=7, num_inference_steps=2).save(tmp_path / "styled.mp4")
    assert (tmp_path / "styled.mp4").read_bytes() == styled


def test_jobs_under_way_end_on_the_old_weights_and_waiting_ones_start_on_the_new(client, make, ask, events, finished):
    expected, own = make(client, steps=40)
    waiting_expected, _ = make(client, seed=1)
    running = ask(client, steps=40).json()["id"]
    with events(client, running) as stream:
        next(name for _, name, _ in stream if name == "step")
    waiting = ask(client, seed=1).json()["id"]
    answers = []
    swap = threading.Thread(target=lambda: answers.append(set_lora(client, lora_nickname="motion")))
    swap.start()
    while not client.get("/v1/capabilities").json()["models"][0]["loras"]:
        time.sleep(0.02)
    assert client.get("/v1/list_loras").json()["active"] == {"transformer": []}
    done, later = finished(client, running), finished(client, waiting)
    swap.join()
    assert answers[0].status_code == 200
    assert done["weights"] == own["weights"] and later["weights"] == answers[0].json()["weights"]
    assert done["completed_at"] <= later["started_at"]
    content = client.get(f"/v1/videos/{running}/content").content
    assert content == expected and client.get(f"/v1/videos/{waiting}/content").content != waiting_expected
    unmerge(client)


def test_a_worker_and_a_server_that_are_killed_go_on_with_the_weights_that_they_had(servers, make, named, tiny_bundle):
    options = ("-b", str(tiny_bundle), "--threads", "1", "--no-previews")
    server = servers(*options, *named)
    with server.client as client:
        base, _ = make(client)
        set_lora(client, lora_nickname="style")
        styled, video = make(client)
        killed = worker_of(server)
        killed.kill()
        while killed.is_running() or not client.get("/v1/capabilities").json()["workers"][0]["models"]:
            time.sleep(0.05)
        assert make(client)[0] == styled
    server.stop(signal.SIGKILL)
    with (server := servers(*options, *named)).client as client:
        content, again = make(client)
        assert content == styled and again["loras"] == video["loras"] and again["weights"] == video["weights"]
    server.stop()
    with (server := servers(*options)).client as client:
        content, video = make(client)
        assert content == base and video["loras"] == [] and "not named any more" in server.log.read_text()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"lora_nickname": "styl"}, "'styl' is unknown: the operator names the files. Known: "),
        ({"lora_nickname": "style", "lora_path": "/etc/passwd"}, "Leave it out"),
        ({"lora_nickname": ["style", "motion"], "strength": [1]}, "1 entries for 2 LoRAs"),
        ({"lora_nickname": ["style", "style"]}, "named twice"),
        ({"lora_nickname": "style", "strength": "much"}, "a number from -1000 to 1000"),
        ({"lora_nickname": "style", "strength": float("nan")}, "a number from -1000 to 1000"),
        ({"lora_nickname": "style", "target": "critic"}, "merged whole"),
        ({"lora_nickname": "style", "scale": 1}, "'scale' is unknown"),
        ({"lora_nickname": "style", "model": "demo"}, "'demo' is not loaded"),
        ({}, "lora_nickname is missing"),
        ({"lora_nickname": "other"}, "other is no LoRA for this model: its keys unet.other.lora_A.weight fit no layer"),
        ({"lora_nickname": "wild"}, "not finite"),
    ],
)
def test_what_cannot_be_set_is_refused_and_the_weights_stay(client, server, files, body, told):
    import json

    before = client.get("/v1/list_loras").json()
    answer = client.post("/v1/set_lora", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"], answer.text
    assert str(server.data) not in answer.text and str(files["other"].parent) not in answer.text
    assert client.get("/v1/list_loras").json() == before


def test_weights_that_make_no_video_are_given_back(client, server, make):
    base, _ = make(client)
    worker = worker_of(server).pid
    answer = set_lora(client, lora_nickname="wild", strength=1e-40)
    assert answer.status_code == 200
    answer = set_lora(client, lora_nickname="wild", strength=1e-8)
    assert answer.status_code == 400 and "not finite" in answer.json()["error"]["message"], answer.text
    assert client.get("/v1/list_loras").json()["active"]["transformer"][0]["strength"] == 1e-40
    unmerge(client)
    assert make(client)[0] == base and worker_of(server).pid == worker


def test_every_worker_goes_over_and_a_replaced_bundle_is_read_again(
    servers, ask, finished, files, tiny_bundle, change_weight, tmp_path
):
    served = Path(shutil.copytree(tiny_bundle, tmp_path / "served"))
    own = Bundle.open(served).digest
    key = {"authorization": "Bearer 12345678"}
    server = servers(
        *("-b", str(served), "--threads", "1", "--no-previews", "--device", "cpu", "--device", "cpu"),
        *("--api-key", "12345678", "--lora", f"style={files['style']}"),
    )
    routes = (
        ("POST", "set_lora"),
        ("POST", "unmerge_lora_weights"),
        ("GET", "list_loras"),
        ("POST", "models/served/reload"),
    )
    with server.client as client:
        assert {client.request(method, f"/v1/{path}").status_code for method, path in routes} == {401}
        client.headers.update(key)

        def digests() -> set[str]:
            ids = [ask(client, steps=1, seed=seed).json()["id"] for seed in range(4)]
            return {finished(client, one)["weights"] for one in ids}

        styled = set_lora(client, lora_nickname="style").json()["weights"]
        assert digests() == {styled} != {own}
        unmerge(client)
        assert digests() == {own}
        # Another bundle under the same name: the LoRA is merged into its weights too.
        set_lora(client, lora_nickname="style")
        change_weight(served, "vae_encoder", "vae.encoder.conv_in.weight", 1.5)
        answer = client.post("/v1/models/served/reload").json()
        assert answer["active"]["transformer"][0]["nickname"] == "style" and digests() == {answer["weights"]} != {
            styled
        }
        assert unmerge(client).json()["weights"] == Bundle.open(served).digest != own
        # One that holds LoRAs of its own takes no others.
        changed = set_lora(client, lora_nickname="style").json()["weights"]
        other = merge_into_bundle(tiny_bundle, [LoraRequest(files["motion"])], tmp_path / "served.new")
        plain = Bundle.open(other)
        shutil.rmtree(served)
        other.rename(served)
        answer = client.post("/v1/models/served/reload")
        assert answer.status_code == 400 and "holds LoRAs already" in answer.text
        assert digests() == {changed}
        assert unmerge(client).json()["weights"] == plain.digest
        assert digests() == {plain.digest}
        shutil.rmtree(served)
        shutil.copytree(tiny_bundle, served)
        assert client.post("/v1/models/served/reload").json()["weights"] == own
        assert digests() == {own}
        assert client.post("/v1/models/other/reload").status_code == 400
        shutil.rmtree(served / "unet")
        answer = client.post("/v1/models/served/reload")
        assert answer.status_code == 400 and str(tmp_path) not in answer.text
        assert digests() == {own}


def test_merged_bundles_go_when_nothing_wants_them(client, server, tiny_bundle):
    """The module's server keeps them for a day: made old, they are gone after the next look."""
    from consisti2v_rt.serve.logs import Log
    from consisti2v_rt.serve.loras import Loras
    from consisti2v_rt.serve.metrics import Metrics
    from consisti2v_rt.serve.models import open_models
    from consisti2v_rt.serve.options import ServerOptions
    from consisti2v_rt.serve.workers import Workers

    weights = set_lora(client, lora_nickname="style").json()["weights"]
    folders = sorted((server.data / "loras").iterdir())
    assert len(folders) >= 2
    (active,) = (folder for folder in folders if Bundle.open(folder, verify=False).digest == weights)
    models = open_models([str(tiny_bundle)])
    (name,) = models
    models[name] = type(models[name])(**{**vars(models[name]), "folder": active})
    options = ServerOptions(bundles=(str(tiny_bundle),), data=server.data)
    loras = Loras(options, None, Workers(models, [], Metrics(), Log(), lambda: None), Log())
    loras.tidy()
    assert sorted((server.data / "loras").iterdir()) == folders
    old = time.time() - 25 * 3600
    for folder in (folders[0], active):
        os.utime(folder, (old, old))
    loras.tidy()
    left = set((server.data / "loras").iterdir())
    assert active in left and left == set(folders) - ({folders[0]} - {active})
    unmerge(client)


@pytest.mark.parametrize("text", ["style", "=style.safetensors", "a b=x.safetensors", "style=/no/such.safetensors"])
def test_options_that_are_refused(consisti2v, tmp_path, text):
    told = consisti2v("serve", "--data", tmp_path / "data", "--lora", text).refusal()
    assert "--lora" in told and not (tmp_path / "data").exists()
