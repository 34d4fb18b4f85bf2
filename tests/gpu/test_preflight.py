"""Memory: what is needed, what is chosen, what is refused, and the scratch block."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import EngineSpec, FileRecord, ProfileSpec, ShapeRange, TensorSpec
from consisti2v_rt.runtime.gpu.memory import SharedWorkspace, WeightResidency
from consisti2v_rt.runtime.gpu.preflight import RESERVE, Need, frames_at_once, need_of_engines, need_of_graphs, plan

GIB = 1 << 30
# Full size in FP16, rounded up from shared/gpu.md: U-Net 2411 MiB of weights and 296 MiB of working memory.
NEED = Need({"unet": 3 * GIB, "vae_decoder": GIB}, {"unet": GIB // 2, "vae_decoder": GIB}, 0)


def test_the_sums():
    assert NEED.resident == 5 * GIB + RESERVE
    assert NEED.one_stage == 4 * GIB + RESERVE


@pytest.mark.parametrize(
    ("free", "low_vram", "expected"),
    [
        (8, None, False),
        (4.5, None, True),
        (8, True, True),
        (8, False, False),
    ],
)
def test_the_choice(free, low_vram, expected):
    chosen = plan(NEED, int(free * GIB), 8 * GIB, low_vram)
    assert chosen.low_vram is expected and chosen.known
    assert chosen.needed == (NEED.one_stage if expected else NEED.resident)
    assert (chosen.warning is not None) == (free == 4.5)


def test_needed_and_free_are_told():
    told = "GPU memory: {} GiB needed, {} of 8.0 GiB are free"
    assert plan(NEED, 7 * GIB, 8 * GIB, None).message == told.format(5.2, "7.0")
    assert plan(NEED, 7 * GIB, 8 * GIB, True).message == told.format(4.2, "7.0")
    assert "at least 5.2 GiB" in plan(replace(NEED, known=False), 7 * GIB, 8 * GIB, None).message


def test_the_command_shows_it(fake_cuda, consisti2v, demo_bundle, photo, tmp_path, caplog):
    output = tmp_path / "a.png"
    outcome = consisti2v(
        *("generate", "-b", demo_bundle, "-i", photo, "-o", output, "--steps", "1", "--device", "cuda", "--no-verify")
    )
    assert outcome.code == 0, outcome.stderr
    # pytest's handlers stand where the command line's own would.
    assert "GPU memory: at least 0.3 GiB needed, 8.0 of 8.0 GiB are free" in caplog.text


def test_going_lean_is_told():
    warning = plan(NEED, int(4.5 * GIB), 8 * GIB, None).warning
    assert warning == (
        "5.2 GiB of GPU memory would be needed to keep all stages there, and 4.5 of 8.0 GiB are free: "
        "going on as --low-vram"
    )


def test_refusals_say_how_to_mend_it():
    with pytest.raises(UserError, match=r"needs 5\.2 GiB .* 4\.5 of 8\.0 GiB are free: pass --low-vram \(4\.2 GiB\)"):
        plan(NEED, int(4.5 * GIB), 8 * GIB, False)
    with pytest.raises(UserError, match=r"needs 4\.2 GiB of GPU memory even with --low-vram"):
        plan(NEED, 4 * GIB, 8 * GIB, None)
    with pytest.raises(UserError, match=r"needs at least 4\.2 GiB"):
        plan(replace(NEED, known=False), 4 * GIB, 8 * GIB, None)


@pytest.fixture(scope="module")
def bundle(demo_bundle):
    return Bundle.open(demo_bundle, verify=False)


DIMS = {"rows": 2, "latent_height": 16, "latent_width": 16, "height": 128, "width": 128}


def test_graphs_count_their_files_and_buffers(bundle):
    need = need_of_graphs(bundle, bundle.manifest.stages, DIMS, rows=2)
    files = bundle.manifest.files
    assert need.weights["unet"] == files["unet/unet.onnx"].bytes + files["unet/unet.onnx.data"].bytes
    assert not need.known and not need.workspace
    more = need_of_graphs(bundle, bundle.manifest.stages, DIMS, rows=4)
    # 4 x 15 x 16 x 16 float32 a row, eight times.
    assert more.buffers - need.buffers == 2 * 8 * 4 * 15 * 16 * 16 * 4


def test_engines_count_plans_and_metadata(bundle, tmp_path):
    engine = EngineSpec(
        "unet", "e/unet.plan", "sm89", "tensorrt-rtx", "1.7", "fp16", ("8.9",), "0", metadata="facts.json"
    )
    files = {**bundle.manifest.files, "e/unet.plan": FileRecord("0", 1000), "facts.json": FileRecord("0", 10)}

    def with_facts(metadata: object) -> Bundle:
        (tmp_path / "facts.json").write_text(json.dumps(metadata))
        return Bundle(tmp_path, replace(bundle.manifest, files=files | hash_files(tmp_path, ["facts.json"])))

    unknown = need_of_engines(Bundle(tmp_path, replace(bundle.manifest, files=files)), {"unet": engine}, DIMS, 2)
    assert unknown.weights == {"unet": 1000} and not unknown.known
    copy = with_facts({"activation_bytes": [5000, 7000]})
    known = need_of_engines(copy, {"unet": engine}, DIMS, 2)
    assert known.known and known.workspace == {"unet": 7000}
    # A profile a batch: larger ones than asked for are not used.
    profiles = tuple(ProfileSpec(n, {}) for n in (1, 2, 3))
    copy = with_facts({"activation_bytes": [1000, 2000, 3000]})
    for rows, expected in ((1, 1000), (2, 2000), (3, 3000), (6, 3000)):
        need = need_of_engines(copy, {"unet": replace(engine, profiles=profiles)}, DIMS, rows)
        assert need.workspace == {"unet": expected}
    assert not need_of_engines(with_facts([]), {"unet": engine}, DIMS, 2).known


def test_the_decoder_s_frames_are_chosen_by_memory(bundle, tmp_path):
    """An engine's profile of four frames counts where four are decoded; a backend that does not tell is assumed to need
    256 pictures of float32 for each."""
    spec, one, four = TensorSpec("latents", "float16", ("frames", 4, 16, 16)), (1, 4, 16, 16), (4, 4, 16, 16)
    profiles = tuple(ProfileSpec(None, {"latents": ShapeRange(shape, shape, shape)}) for shape in (one, four))
    (tmp_path / "facts.json").write_text(json.dumps({"activation_bytes": [GIB, 3 * GIB]}))
    files = {"e/d.plan": FileRecord("0", GIB), **hash_files(tmp_path, ["facts.json"])}
    engine = EngineSpec(
        *("vae_decoder", "e/d.plan", "sm89", "tensorrt-rtx", "1.7", "fp16", ("8.9",), "0"),
        inputs=(spec,),
        profiles=profiles,
        metadata="facts.json",
    )
    opened = Bundle(tmp_path, replace(bundle.manifest, files=bundle.manifest.files | files))

    def need_of(frames: int) -> Need:
        return need_of_engines(opened, {"vae_decoder": engine}, DIMS | {"frames": frames}, 2)

    assert [need_of(frames).workspace["vae_decoder"] for frames in (1, 4)] == [GIB, 3 * GIB]
    for free, frames in ((5 * GIB, 4), (4 * GIB, 1), (GIB, 1)):
        assert frames_at_once(need_of, 1, free, None) == (frames, need_of(frames))
    unknown = Need({}, {}, 0, known=False)
    for free, frames in ((RESERVE + 1024 * 1000, 4), (RESERVE + 1024 * 1000 - 1, 1)):
        assert frames_at_once(lambda _: unknown, 1000, free, None) == (frames, unknown)


def test_scratch_grows_to_the_largest_and_says_when_it_moved(gpu):
    workspace = SharedWorkspace(gpu)
    workspace.reserve(1000)
    place, version = workspace.address, workspace.version
    workspace.reserve(500)
    assert (workspace.address, workspace.version, workspace.nbytes) == (place, version, 1000)
    workspace.reserve(5000)
    assert workspace.nbytes == 5000 and workspace.version == version + 1
    assert workspace.address % 256 == 0


class Weights:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_weights_take_turns_only_where_they_have_to(gpu):
    residency, first, second = WeightResidency(gpu), Weights(), Weights()
    residency.use(first)
    residency.use(second)
    assert first.released == second.released == 0
    residency.exclusive = True
    residency.use(second)
    assert second.released == 0, "already its turn"
    residency.use(first)
    assert (first.released, second.released) == (0, 1)
