"""The demo model's data, training and weights, at tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from consisti2v_rt.errors import UserError  # noqa: E402
from consisti2v_rt.export.loading import load_model  # noqa: E402
from consisti2v_rt.models.demo.making import noising, unet_training  # noqa: E402
from consisti2v_rt.models.demo.making.captions import MOVE_PHRASES, move_caption  # noqa: E402
from consisti2v_rt.models.demo.making.checkpoint import (  # noqa: E402
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from consisti2v_rt.models.demo.making.clock import Clock, learning_rate  # noqa: E402
from consisti2v_rt.models.demo.making.counterparts import shuffled, still  # noqa: E402
from consisti2v_rt.models.demo.making.flow import Motion, agrees, fit_motion  # noqa: E402
from consisti2v_rt.models.demo.making.latent_clips import LatentClips, encode_frames  # noqa: E402
from consisti2v_rt.models.demo.making.learning_rates import RelativeSteps  # noqa: E402
from consisti2v_rt.models.demo.making.media import PHOTOS  # noqa: E402
from consisti2v_rt.models.demo.making.model_card import write_model_card  # noqa: E402
from consisti2v_rt.models.demo.making.moves import MOVES, PAN_SPEED, extent, render, view  # noqa: E402
from consisti2v_rt.models.demo.making.presets import preset  # noqa: E402
from consisti2v_rt.models.demo.making.recommendation import DEMO_RECOMMENDED  # noqa: E402
from consisti2v_rt.models.demo.making.sampling import SampleSettings, sample_videos  # noqa: E402
from consisti2v_rt.models.demo.making.text_encoder import CaptionEncoder, build_text_encoder  # noqa: E402
from consisti2v_rt.models.demo.making.text_training import (  # noqa: E402
    BEGIN_CHANNEL,
    END_CHANNEL,
    MOVE_CODES,
    NO_MOVE_CHANNEL,
    text_targets,
    train_text_encoder,
)
from consisti2v_rt.models.demo.making.unet_start import start_as_camera  # noqa: E402
from consisti2v_rt.models.demo.making.unet_start.positions import place_maps  # noqa: E402
from consisti2v_rt.models.demo.making.unet_training import TrainedPair, train_unet, trained_pair  # noqa: E402
from consisti2v_rt.models.demo.making.vae_training import build_vae  # noqa: E402
from consisti2v_rt.models.demo.making.view_kernel import moved_latents  # noqa: E402
from consisti2v_rt.models.demo.making.weights import start_from, write_weights  # noqa: E402

pytestmark = pytest.mark.rare

TINY = preset("tiny")


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A smooth random picture [3, 96, 128] in 0..1."""
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (96, 128), mode="bicubic", align_corners=False)[0].clamp(0, 1)


@pytest.fixture
def clips() -> LatentClips:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 16, 4, 4, 4, generator=generator).half()
    return LatentClips(latents, torch.tensor([1, 2, 3, 5]), ["pan left", "zoom in", "still", "pan up"], 1.5)


def test_pan_right_runs_the_picture_left(photo: torch.Tensor) -> None:
    """Frame k of a pan equals frame 0 seen from a place shifted by k times the speed."""
    clip = render(photo, (60.0, 48.0), 32.0, "pan_right", 5, 16, 32)
    shift = PAN_SPEED * 5 * 12 * 32
    expected = render(photo, (60.0 + shift, 48.0), 32.0, "still", 5, 2, 32)[0]
    torch.testing.assert_close(clip[12], expected, atol=1e-4, rtol=0)
    assert (clip[12] - clip[0]).abs().mean() > 0.01


@pytest.mark.parametrize("move", MOVES)
def test_views_move_as_named_and_more_with_stride(move: str) -> None:
    near, far = view(move, 10, 1), view(move, 10, 4)
    amounts = {
        "pan_left": lambda v: -v.x,
        "pan_right": lambda v: v.x,
        "pan_up": lambda v: -v.y,
        "pan_down": lambda v: v.y,
        "zoom_in": lambda v: 1 - v.size,
        "zoom_out": lambda v: v.size - 1,
        "rotate_clockwise": lambda v: v.angle,
        "rotate_counterclockwise": lambda v: -v.angle,
    }
    if move == "still":
        assert near == far == view(move, 0, 1)
    else:
        assert 0 < amounts[move](near) < amounts[move](far)
    left, top, right, bottom = extent(move, 16, 4)
    assert left <= -0.5 < 0.5 <= right and top <= -0.5 < 0.5 <= bottom


def test_clockwise_turns_the_picture_clockwise() -> None:
    """A dot right of the centre goes down."""
    picture = torch.zeros(3, 65, 65)
    picture[:, 31:34, 48:51] = 1
    clip = render(picture, (32.5, 32.5), 64.0, "rotate_clockwise", 5, 16, 64)
    rows = torch.arange(64.0)
    heights = [float((frame[0].sum(1) * rows).sum() / frame[0].sum()) for frame in clip]
    assert heights[15] > heights[8] > heights[0] + 2


def test_flow_of_true_moves_agrees_and_of_others_does_not(photo: torch.Tensor) -> None:
    pytest.importorskip("cv2")
    from consisti2v_rt.models.demo.making.flow import mean_motion

    for move in ("pan_left", "pan_down", "zoom_in", "still"):
        clip = render(photo, (64.0, 48.0), 48.0, move, 3, 6, 64)
        motion = mean_motion((clip * 255).round().byte().permute(0, 2, 3, 1).numpy())
        passed = [other for other in MOVES if agrees(motion, other, 0.0015)]
        assert passed == [move]


def test_fit_motion_recovers_a_similarity() -> None:
    y, x = np.mgrid[:33, :33] - 16.0
    field = np.stack([2 + 0.1 * x - 0.05 * y, -1 + 0.1 * y + 0.05 * x], axis=-1)
    motion = fit_motion(field)
    assert (motion.right, motion.down) == pytest.approx((2 / 33, -1 / 33))
    assert (motion.growth, motion.turn) == pytest.approx((0.1, 0.05))


def test_still_needs_slowness_and_a_pan_needs_its_direction() -> None:
    assert agrees(Motion(0, 0, 0, 0, 0.001), "still", 0.0015)
    assert not agrees(Motion(0.01, 0, 0, 0, 0.01), "still", 0.0015)
    assert agrees(Motion(-0.01, 0.002, 0, 0, 0.01), "pan_right", 0.0015)
    assert not agrees(Motion(-0.01, 0.02, 0, 0, 0.02), "pan_right", 0.0015)


def test_captions_name_the_move_and_only_it() -> None:
    rng = np.random.default_rng(0)
    for move, phrases in MOVE_PHRASES.items():
        others = {phrase for other, texts in MOVE_PHRASES.items() if other != move for phrase in texts}
        assert not others & set(phrases)
        captions = {move_caption(move, "a cat", rng) for _ in range(60)}
        assert all(any(phrase in caption for phrase in phrases) for caption in captions)
        assert any("a cat" in caption for caption in captions) and phrases[0] in captions


def test_eight_photos_or_more_are_held_out_and_all_have_credit() -> None:
    assert sum(photo.held_out for photo in PHOTOS) >= 8
    assert all(photo.author for photo in PHOTOS)
    assert {photo.licence for photo in PHOTOS} <= {"CC0", "public domain", "CC-BY-4.0"}


def test_null_conditions_and_noise_are_as_published() -> None:
    abar = noising.schedule()
    rng = np.random.default_rng(0)
    clean = torch.randn(400, 16, 1, 2, 2)
    batch = noising.noisy_batch(clean, abar, rng)
    kept = (batch.first_frame[:, :, 0] == clean[:, 0]).flatten(1).all(1)
    assert 0.05 < 1 - kept.float().mean() < 0.16
    assert 0.05 < np.mean(batch.text_dropped) < 0.16
    level = abar[batch.timesteps].view(-1, 1, 1, 1, 1)
    noisy = level.sqrt() * clean.transpose(1, 2)[:, :, 1:] + (1 - level).sqrt() * batch.noise
    torch.testing.assert_close(batch.sample, noisy)
    # Half of the noise's variance is shared by the frames.
    shared = (batch.noise[:, :, 0] * batch.noise[:, :, 9]).mean()
    assert shared == pytest.approx(0.5, abs=0.1)
    assert float(noising.loss_weights(abar).mean()) == pytest.approx(1)


def test_learning_rate_warms_up_and_falls() -> None:
    assert learning_rate(1.0, 0, 0.0) < learning_rate(1.0, 49, 0.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 500, 0.5) > learning_rate(1.0, 900, 1.0) == pytest.approx(0.05)


def test_pauses_are_not_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(1.0, spent=10.0)
    for passed in (5.0, 600.0, 5.0):
        now[0] += passed
        clock.spent  # noqa: B018 - a look at the clock
    assert clock.spent == pytest.approx(20.0) and clock.progress == pytest.approx(1 / 3)


def test_steering_weights_learn_slowly() -> None:
    """One step of a plain optimiser: silent branches move by the whole rate, steering channels by a hundredth."""
    unet = TrainedPair(TINY).unet
    before = {name: value.detach().clone() for name, value in unet.named_parameters()}
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    RelativeSteps(unet).step(torch.optim.SGD(unet.parameters(), lr=1.0))
    moved = {name: before[name] - value.detach() for name, value in unet.named_parameters() if value.requires_grad}
    writing = moved["up_blocks.1.resnets.0.conv2.weight"].mean((1, 2, 3)).tolist()
    assert writing[0] == pytest.approx(1.0, abs=1e-4) and writing[4] == pytest.approx(1.0, abs=1e-4)
    assert writing[20] == pytest.approx(0.01, abs=1e-4)
    assert float(moved["conv_in.weight"].mean()) == pytest.approx(0.01, abs=1e-4)
    assert float(moved["conv_out.weight"].mean()) == pytest.approx(0.1, abs=1e-4)
    assert float(moved["up_blocks.0.attentions.0.proj_out.weight"].mean()) == pytest.approx(1.0, abs=1e-4)


def test_latents_move_against_the_view() -> None:
    ramp = torch.arange(8.0).expand(2, 1, 8, 8)
    moved = moved_latents(ramp, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(moved[0, :, 2:6, 2:5], ramp[0, :, 2:6, 3:6], atol=0.05, rtol=0)
    torch.testing.assert_close(moved[1, :, :, 2:6], ramp[1, :, :, 2:6], atol=0.05, rtol=0)


def test_counterparts_hold_the_same_frames() -> None:
    """Shuffled pairs keep every frame once; still ones keep the first only."""
    numbers = np.arange(4, dtype=np.uint8)[:, None, None, None]
    videos = [10 * n + numbers + np.zeros((4, 2, 2, 3), np.uint8) for n in range(4)]
    mixed = shuffled(videos, seed=0)
    shown = sorted(int(value) for clip in mixed for value in clip[:, 0, 0, 0])
    assert shown == [10 * n + k for n in range(4) for k in range(4)]
    assert {int(v) // 10 for v in np.concatenate([mixed[0], mixed[1]])[:, 0, 0, 0]} == {0, 2}
    assert all((clip == video[0]).all() for clip, video in zip(still(videos), videos, strict=True))


def test_checkpoint_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert load_checkpoint(path) is None
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(3)
    save_checkpoint(path, {"random": random_state(rng, generator), "weight": torch.ones(2)})
    expected = rng.random(), torch.rand(1, generator=generator)
    other, other_generator = np.random.default_rng(4), torch.Generator()
    state = load_checkpoint(path)
    assert state is not None and state["weight"].tolist() == [1, 1]
    restore_random_state(other, other_generator, state["random"])
    assert (other.random(), torch.rand(1, generator=other_generator)) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(path)


def test_killed_training_resumes_with_the_same_losses(
    tmp_path: Path, clips: LatentClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The U-Net's start has a test of its own and takes longer than the steps; random weights resume as well.
    monkeypatch.setattr(unet_training, "start_pair", lambda *arguments: None)

    class KilledError(Exception):
        pass

    def train(folder: Path, kill_at: int | None) -> list[float]:
        folder.mkdir(exist_ok=True)
        losses: list[float] = []

        def on_step(step: int, loss: float) -> None:
            if step == kill_at:
                raise KilledError
            losses.append(loss)

        train_unet(TINY, clips, folder, 60, max_steps=4, checkpoint_seconds=0, echo=False, on_step=on_step)
        return losses

    whole = train(tmp_path / "whole", None)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", 3)
    resumed = train(tmp_path / "killed", None)
    assert np.float64(1e-320) * 1 > 0, "denormals are flushed after a training as well"
    assert len(whole) == 4 and np.isfinite(whole).all()
    assert resumed == pytest.approx(whole[2:], rel=1e-4)


def test_autoencoder_starts_as_interpolation() -> None:
    vae = build_vae(TINY).eval()
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    smooth = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic", align_corners=False)
    with torch.no_grad():
        latents = encode_frames(vae, smooth)
        back = vae.decode(latents).sample
        assert vae.encode(smooth).latent_dist.logvar.std() > 0, "the export takes a constant output for damage"
    assert latents.shape == (1, 4, 16, 16)
    # The zero padding of the convolutions darkens the border until training has dealt with it.
    inner = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    assert float((back - smooth)[inner].pow(2).mean()) < 0.05 * float(smooth[inner].var())


def test_the_start_moves_the_first_frame_as_the_text_says() -> None:
    """A ramp from left to right, seen through a view that goes right, rises; nothing else is asked of the start."""
    pair = TrainedPair(preset("tiny", 32)).eval()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    start_as_camera(pair.unet, torch.randn(3, 16, 4, 8, 8, generator=generator))
    maps = place_maps(8)
    first = torch.stack([maps[0], maps[1], 0 * maps[0], maps[0] ** 2])[None, :, None]
    abar = float(noising.schedule()[700])

    def moved(move: str, stride: int) -> torch.Tensor:
        """The first frame as the model sees it in the frames after: its prediction of the clean latents."""
        text = torch.zeros(1, 77, 16)
        text[:, 0, BEGIN_CHANNEL] = text[:, 4:, END_CHANNEL] = 1
        text[:, 4:, :4] = torch.tensor(MOVE_CODES[move])
        sample = torch.randn(1, 4, 15, 8, 8, generator=generator)
        with torch.no_grad():
            noise = pair.unet(sample, 700, text, first, stride)
        return (sample - (1 - abar) ** 0.5 * noise) / abar**0.5

    inner = (0, slice(None), slice(None), slice(3, 5), slice(3, 5))
    still, right, faster = moved("still", 3), moved("pan_right", 3), moved("pan_right", 5)
    assert float((still - first)[inner].abs().max()) < 0.15
    rise = [(clip - first)[inner][0].mean((1, 2)) for clip in (right, faster)]
    for clip, stride in zip(rise, (3, 5), strict=True):
        assert float(clip[-1]) == pytest.approx(2 * PAN_SPEED * 15 * stride, abs=0.1)
        assert clip[-1] > clip[7] > clip[0] - 0.05
    assert float((right - first)[inner][1].abs().max()) < 0.15, "nothing goes down"


def test_text_encoder_learns_where_the_camera_goes() -> None:
    """The targets say the move from the end of the text on; a few steps bring the states nearer to them."""
    target, weights = text_targets(["pan_right", None], [3, 1], 6)
    assert target[0, 3:, 0].tolist() == [1, 1, 1] and target[0, :3, 0].tolist() == [0, 0, 0]
    assert target[1, 1:, NO_MOVE_CHANNEL].all() and target[:, 0, BEGIN_CHANNEL].all()
    assert weights[0, 1:3, :4].sum() == 0 and weights[0, 3:].all()
    torch.manual_seed(0)
    losses: list[float] = []
    train_text_encoder(build_text_encoder(TINY), 8, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0]


def test_a_training_writes_weights_that_load_and_sample(tmp_path: Path, clips: LatentClips) -> None:
    run = train_unet(TINY, clips, tmp_path, 60, max_steps=3, echo=False)
    assert run.steps == 3 and np.isfinite(run.loss)
    pair, vae = trained_pair(TINY, tmp_path), build_vae(TINY, scaling_factor=clips.scaling_factor)
    folder = tmp_path / "model"
    assert write_weights(folder, pair, vae) > 0
    model = load_model(folder)
    assert float(model.vae.config.scaling_factor) == 1.5 and model.recommended == DEMO_RECOMMENDED
    assert model.unet.config.use_frame_stride_condition and model.unet.config.augment_temporal_attention
    # Training can begin again from what was written.
    other = TrainedPair(TINY)
    start_from(folder / "unet", other.unet)
    torch.testing.assert_close(other.unet.conv_in.weight, pair.unet.conv_in.weight.float(), atol=1e-3, rtol=0)
    with pytest.raises(UserError):
        start_from(folder / "vae", build_vae(replace(TINY, vae_widths=(16, 32, 32, 64))))
    pictures = torch.zeros(2, 3, TINY.size, TINY.size)
    settings = SampleSettings(steps=2, frame_stride=1)
    captions = CaptionEncoder(model.text_encoder, model.tokenizer)
    videos = sample_videos(model.unet, model.vae, captions, pictures, ["pan left", "still"], settings)
    assert videos.shape == (2, 16, 3, TINY.size, TINY.size) and videos.isfinite().all()

    metadata = {"preset": "tiny", "size": 16, "clips": 4, "bytes": 1, "hardware": "no GPU", "note": "A test."}
    part = {"steps": 3, "batch": 2, "minutes": 0.1, "loss": 1.0}
    (folder / "training.json").write_text(json.dumps(metadata | {"vae": part, "unet": part}))
    write_model_card(folder)
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "Blender Foundation" in card
    assert all(photo.author in card for photo in PHOTOS)


def test_presets_refuse_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="is unknown"):
        preset("huge")
    with pytest.raises(UserError, match="multiple of 8"):
        preset("cpu", 60)
