"""The second form of the demo model: what its making sets by formula does what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("cv2")

from consisti2v_rt.errors import UserError  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402
from consisti2v_rt.models.demo_128.making import media, vae  # noqa: E402
from consisti2v_rt.models.demo_128.making.data import clips, pictures  # noqa: E402
from consisti2v_rt.models.demo_128.making.layer import TRUNK  # noqa: E402
from consisti2v_rt.models.demo_128.making.levels import gain_and_pull, set_levels  # noqa: E402
from consisti2v_rt.models.demo_128.making.make import kept  # noqa: E402
from consisti2v_rt.models.demo_128.making.measures import agrees, compare, grid_energy, mean_motion  # noqa: E402
from consisti2v_rt.models.demo_128.making.moves import MOVES, PAN_SPEED, photographed, places, view  # noqa: E402
from consisti2v_rt.models.demo_128.making.prompts import MOVE_PHRASES  # noqa: E402
from consisti2v_rt.models.demo_128.making.resample import fitted  # noqa: E402
from consisti2v_rt.models.demo_128.making.text import END, targets  # noqa: E402
from consisti2v_rt.models.demo_128.making.unet import CONFIG  # noqa: E402

SIZE = vae.SIZE


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A smooth random picture [3, 224, 256] in 0..1."""
    noise = torch.rand(1, 3, 14, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (224, 256), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def moved(photo: torch.Tensor, move: str, stride: int, frames: int = 16) -> torch.Tensor:
    """The photo's middle under a camera move: float [frames, 3, 128, 128] in 0..1."""
    seen = [places(view(move, frame, stride), 2 * SIZE) for frame in range(frames)]
    return photographed(photo, (photo.shape[2] / 2, photo.shape[1] / 2), SIZE, seen)


def as_uint8(clip: torch.Tensor) -> np.ndarray:
    return (clip * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_pan_right_runs_the_picture_left(photo: torch.Tensor) -> None:
    clip = moved(photo, "pan_right", 5)
    shift = round(PAN_SPEED * 5 * 10 * SIZE)
    frame = shift / (PAN_SPEED * 5 * SIZE)
    seen = [places(view("pan_right", frame, 5), 2 * SIZE)]
    at = photographed(photo, (photo.shape[2] / 2, photo.shape[1] / 2), SIZE, seen)[0]
    torch.testing.assert_close(at[:, :, :-shift], clip[0][:, :, shift:], atol=1e-4, rtol=0)


def test_clockwise_turns_the_picture_clockwise() -> None:
    """A dot right of the centre goes down."""
    picture = torch.zeros(3, 160, 160)
    picture[:, 76:84, 110:118] = 1
    rows = torch.arange(float(SIZE))
    heights = [float((f[0].sum(1) * rows).sum() / f[0].sum()) for f in moved(picture, "rotate_clockwise", 5)]
    assert heights[15] > heights[8] > heights[0] + 2


def test_rows_then_columns_end_where_the_view_is() -> None:
    """The first resampling at (x, v), with v the row where the second one ends, is the view at (x, y)."""
    for move in MOVES:
        v = view(move, 12, 4)
        x, y = places(v, 64)
        rows, down = places(v, 64, rows=True)
        across = torch.arange(64.0)
        # Along a column the place in a row is linear in the row: interpolated at y.
        position = (y + 0.5) * 64 - 0.5
        inside = (position >= 0) & (position <= 63)
        low = position.clamp(0, 62).floor().long()
        column = across.long().expand(64, 64)
        share = position - low
        found = (1 - share) * rows[low, column] + share * rows[low + 1, column]
        torch.testing.assert_close(found[inside], x[inside], atol=1e-5, rtol=0)
        assert torch.equal(down, places(view("still", 0, 1), 64)[1])


def test_flow_of_true_moves_agrees_and_of_others_does_not(photo: torch.Tensor) -> None:
    for move in ("pan_left", "pan_down", "zoom_in", "rotate_clockwise", "still"):
        motion = mean_motion(as_uint8(moved(photo, move, 3, 6)))
        assert [other for other in MOVES if agrees(motion, other)] == [move]


@pytest.mark.slow
def test_comparison_of_the_truth_and_of_damage(photo: torch.Tensor) -> None:
    true = as_uint8(moved(photo, "pan_left", 3))
    same = compare(true, true, "pan_left", 3)
    assert same["psnr 15"] > 60 and same["ssim 8"] == pytest.approx(1) and same["grid"] == pytest.approx(1)
    assert same["agrees"] == 1 and same["amount"] == pytest.approx(1)
    checked = true.astype(int)
    checked[:, :, ::8] += 6
    damaged = compare(checked.clip(0, 255).astype(np.uint8), true, "pan_left", 3)
    assert damaged["grid"] > 1.3 and damaged["psnr 8"] < same["psnr 8"] and damaged["ssim 8"] < 1
    still = compare(np.repeat(true[:1], 16, axis=0), true, "pan_left", 3)
    assert still["agrees"] == 0 and abs(still["amount"]) < 0.1 and still["psnr 15"] < 30
    assert grid_energy(true) > 0


def test_phrases_name_one_move_and_photos_have_credit() -> None:
    phrases = [phrase for texts in MOVE_PHRASES.values() for phrase in texts]
    assert len(set(phrases)) == len(phrases) and set(MOVE_PHRASES) == set(MOVES)
    assert sum(listed.held_out == "yes" for listed in media.PHOTOS) >= 8
    assert all(listed.author for listed in media.PHOTOS)
    assert {listed.licence for listed in media.PHOTOS} <= {"CC0", "public domain", "CC-BY-4.0"}


def test_a_package_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_PIP", {"scikit-image": ["--no-index"]})
    with pytest.raises(UserError, match="the package scikit-image cannot be downloaded"):
        media.fetch(tmp_path)


def test_autoencoder_moves_samples_into_channels_and_back(photo: torch.Tensor) -> None:
    photos = [("noise", [photo])]
    made = vae.build_vae(pictures(photos, 4))
    seen = 2 * moved(photo, "still", 1, 1) - 1
    latents = made.encode(seen).latent_dist.mode()
    torch.testing.assert_close(vae.SCALING * latents, vae.latents_of(seen), atol=2e-3, rtol=0)
    back = made.decode(latents).sample
    error = float((back - seen)[..., 4:-4, 4:-4].square().mean())
    assert 10 * math.log10(4 / error) > 28, "dB of the round trip"
    assert made.encode(seen).latent_dist.logvar.std() > 0, "the export takes a constant output for damage"


def test_latents_of_blocks_hold_their_samples() -> None:
    """Channel 4 i + j is the luma of row i and column j of a block's 4x4 samples."""
    picture = torch.zeros(1, 3, SIZE, SIZE)
    picture[:, :, 8 + 2 : 8 + 4, 16 + 6 : 16 + 8] = 1
    latents = vae.latents_of(picture)[0]
    assert (latents > 0.5).nonzero().tolist() == [[4 * 1 + 3, 1, 2]]


def test_targets_stand_at_the_end_of_a_text() -> None:
    ids = torch.tensor([[49406, 5, 49407, 0], [49406, 49407, 0, 0]])
    target, weights = targets(["pan_right", None], ids)
    assert target[0, 2, :4].tolist() == [1, 0, 0, 0] and target[..., END].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert weights[0, 1, :4].sum() == 0 and weights[0, 2, :4].all()


def test_clips_for_the_fit(photo: torch.Tensor) -> None:
    batch = clips([("noise", [photo])], 0, count=2)
    assert batch.latents.shape == batch.rows.shape == batch.weights.shape == (2, 16, 24, 16, 16)
    assert batch.codes.tolist() == [list(MOVES["pan_left"]), list(MOVES["pan_right"])]
    # A pan along rows is done after the first resampling.
    torch.testing.assert_close(batch.latents, batch.rows)
    assert float(batch.weights.min()) == pytest.approx(0.1) and float(batch.weights[:, 0].min()) == 1


def test_a_finished_part_is_not_made_again(tmp_path: Path) -> None:
    made, loaded = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    kept(loaded, tmp_path / "part.safetensors", lambda: made)
    assert torch.equal(loaded.weight, made.weight)
    kept(loaded, tmp_path / "part.safetensors", lambda: pytest.fail("made again"))
    assert [file.name for file in tmp_path.iterdir()] == ["part.safetensors"]


def test_what_does_not_move_comes_back_as_it_is() -> None:
    """Whatever the resampling was fitted on: here on linear interpolation between three samples."""
    generator = torch.Generator().manual_seed(0)
    values, blocks = torch.randn(4000, 3, generator=generator), 2 * torch.rand(4000, generator=generator) - 1
    right, left = blocks.clamp(min=0), (-blocks).clamp(min=0)
    wanted = left * values[:, 0] + (1 - left - right) * values[:, 1] + right * values[:, 2]
    fit, rest = fitted(values, 12 * blocks, wanted, torch.ones(4000), unmoved=1)

    def resampled(shift: torch.Tensor) -> torch.Tensor:
        gates = torch.nn.functional.gelu(shift[:, None] - 12 * torch.linspace(-1.2, 1.2, 20))
        return (gates * (values @ fit.T)).sum(1) + 8 * values @ rest

    torch.testing.assert_close(resampled(torch.zeros(4000)), values[:, 1], atol=1e-4, rtol=0)
    assert float((resampled(12 * blocks) - wanted).square().mean().sqrt()) < 0.02


def test_channels_follow_timestep_and_stride() -> None:
    """Even with weights in half precision: an error of GAIN leaves noise in the video, one of STRIDE changes speeds."""
    with torch.no_grad():
        unet = VideoUNet.from_config(CONFIG)
        unet.frame_stride_embedding.linear_2.reset_parameters()
        resnet: Any = unet.down_blocks[0].resnets[0]

        def levels(timestep: int, stride: int) -> torch.Tensor:
            strides = unet.frame_stride_embedding(torch.tensor([stride]))
            embedding = torch.nn.functional.silu(unet.time_embedding(torch.tensor([timestep])) + strides)
            out: torch.Tensor = resnet(torch.zeros(1, 128, 2, 2), embedding)
            return out[0, :, 0, 0]

        torch.nn.init.zeros_(resnet.conv1.weight)
        set_levels(unet, resnet, [lambda: levels(500, 3)])
        unet.half().float()
        wanted = gain_and_pull()
        most = wanted.amax(0)
        for timestep, stride in ((0, 1), (1, 3), (20, 5), (300, 1), (501, 3), (981, 5)):
            found = levels(timestep, stride)
            gain, pull = 1 + found[TRUNK["gain"]] * (most[0] - 1), found[TRUNK["pull"]] * most[1]
            assert float(gain) == pytest.approx(float(wanted[timestep, 0]), rel=3e-3)
            assert float(pull) == pytest.approx(float(wanted[timestep, 1]), rel=3e-3, abs=2e-4)
            assert float(found[TRUNK["stride"]]) == pytest.approx(stride / 5, rel=1.5e-3)
