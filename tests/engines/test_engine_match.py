"""Every mismatch of engine, bundle and machine is refused with its reason and the command that mends it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.engines import Machine, build_command, check_engine, engines_fit
from consisti2v_rt.runtime.bundle.manifest import EngineSpec, Manifest, ProfileSpec, ShapeRange, graph_sha256

RTX4060 = Machine("8.9", {"tensorrt-rtx": "1.7.1.116"}, "linux")


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> Manifest:
    return Bundle.open(demo_bundle, verify=False).manifest


@pytest.fixture(scope="module")
def engine(manifest: Manifest) -> EngineSpec:
    """Of the demo U-Net, as it is in the bundle."""
    graph = manifest.stages["unet"]
    return EngineSpec(
        "unet",
        "engines/rtx4060/unet.plan",
        "rtx4060",
        "tensorrt-rtx",
        "1.7.1.116",
        "fp32",
        ("8.9",),
        graph_sha256(manifest, graph),
        graph.inputs,
        graph.outputs,
    )


def test_one_that_fits(engine: EngineSpec, manifest: Manifest) -> None:
    check_engine(engine, manifest, RTX4060)
    check_engine(engine, manifest, RTX4060, {"rows": 2, "latent_height": 16, "latent_width": 16})


@pytest.mark.parametrize(
    ("changes", "machine", "reason"),
    [
        ({}, Machine("8.9", {}, "linux"), "TensorRT for RTX is not installed"),
        ({"version": "1.6.0.1"}, RTX4060, "were built by TensorRT for RTX 1.6.0.1, installed is 1.7.1.116"),
        ({}, Machine("8.6", RTX4060.versions, "linux"), "run on compute capability 8.9, this GPU has 8.6"),
        ({"compute_capabilities": ("8.0+",)}, Machine("7.5", RTX4060.versions, "linux"), "8.0+, this GPU has 7.5"),
        ({"platform": "windows"}, RTX4060, "were built for windows, this is linux"),
        ({"onnx_sha256": "0" * 64}, RTX4060, "was built from another fp32 graph than the bundle has now"),
        ({"precision": "fp16"}, RTX4060, "was built from a fp16 graph that the bundle no longer has"),
        ({"backend": "tensorrt"}, RTX4060, "TensorRT is not installed"),
    ],
)
def test_refusals(
    engine: EngineSpec, manifest: Manifest, changes: dict[str, Any], machine: Machine, reason: str
) -> None:
    changed = dataclasses.replace(engine, **changes)
    with pytest.raises(UserError) as refused:
        check_engine(changed, manifest, machine)
    assert reason in str(refused.value)
    mending = f"--target current --backend {changed.backend} --precision {changed.precision}."
    assert str(refused.value).endswith(mending)


@pytest.mark.parametrize("card", ["8.0", "8.6", "8.9", "12.0", "12.1"])
def test_the_portable_engine_runs_on_later_cards(engine: EngineSpec, manifest: Manifest, card: str) -> None:
    portable = dataclasses.replace(engine, compute_capabilities=("8.0+",))
    check_engine(portable, manifest, Machine(card, RTX4060.versions, "windows"))


@pytest.mark.parametrize("card", ["9.0", "10.0", "10.3"])
def test_data_centre_cards_are_sent_to_tensorrt(engine: EngineSpec, manifest: Manifest, card: str) -> None:
    """TensorRT for RTX knows no such card: it runs no portable engine there, and no message names it as the remedy."""
    here = Machine(card, RTX4060.versions)
    portable = dataclasses.replace(engine, compute_capabilities=("8.0+",))
    with pytest.raises(UserError, match=rf"runs no engines on compute capability {card}: .*--backend tensorrt --prec"):
        check_engine(portable, manifest, here)
    held = dataclasses.replace(manifest, engines=(portable,))
    for bundle in (held, manifest):
        found = engines_fit(bundle, "tensorrt-rtx", "fp32", here)
        assert not found.usable and "--backend tensorrt-rtx" not in found.reason
        assert "CUDA provider" in found.reason


def open_batch(manifest: Manifest, engine: EngineSpec, rows: tuple[int, ...]) -> tuple[Manifest, EngineSpec]:
    """The same with an open batch and an engine for these."""
    graph = manifest.stages["unet"]
    inputs = tuple(
        dataclasses.replace(spec, shape=("rows", *spec.shape[1:])) if len(spec.shape) > 1 else spec
        for spec in graph.inputs
    )
    opened = dataclasses.replace(graph, inputs=inputs)
    free = [spec for spec in inputs if "rows" in spec.shape]

    def fixed(spec: Any, count: int) -> ShapeRange:
        shape = (count, *spec.shape[1:])
        return ShapeRange(shape, shape, shape)

    profiles = tuple(ProfileSpec(count, {spec.name: fixed(spec, count) for spec in free}) for count in rows)
    changed = dataclasses.replace(manifest, stages=manifest.stages | {"unet": opened})
    return changed, dataclasses.replace(engine, inputs=inputs, profiles=profiles)


def test_sizes(engine: EngineSpec, manifest: Manifest) -> None:
    opened, profiled = open_batch(manifest, engine, (1, 2))
    for rows in (1, 2):
        check_engine(profiled, opened, RTX4060, {"rows": rows})
    with pytest.raises(UserError, match=r"takes sample 1x4x15x16x16 or 2x4x15x16x16, not 3x4x15x16x16") as refused:
        check_engine(profiled, opened, RTX4060, {"rows": 3})
    assert "--dynamic rows=3:3:3" in str(refused.value)


def test_stripped_engines_take_changed_weights_but_no_changed_graph(engine: EngineSpec, manifest: Manifest) -> None:
    graph = manifest.stages["unet"]
    stripped = dataclasses.replace(engine, stripped=True, onnx_sha256=graph_sha256(manifest, graph, weights=False))

    def altered(name: str) -> Manifest:
        record = dataclasses.replace(manifest.files[name], sha256="f" * 64)
        return dataclasses.replace(manifest, files=manifest.files | {name: record})

    check_engine(stripped, altered(graph.file + ".data"), RTX4060)
    with pytest.raises(UserError, match="another fp32 graph"):
        check_engine(stripped, altered(graph.file), RTX4060)
    with pytest.raises(UserError, match="another fp32 graph"):
        check_engine(engine, altered(graph.file + ".data"), RTX4060)


def test_manifest_round_trip(engine: EngineSpec, manifest: Manifest) -> None:
    opened, profiled = open_batch(manifest, engine, (1, 2, 3))
    record = manifest.files[manifest.stages["unet"].file]
    whole = dataclasses.replace(opened, engines=(profiled,), files=opened.files | {profiled.file: record})
    assert Manifest.from_json(whole.to_json()) == whole
    with_facts = dataclasses.replace(whole, engines=(dataclasses.replace(profiled, metadata="engines/x.json"),))
    with pytest.raises(UserError, match=r"names 'engines/x\.json' without a hash"):
        Manifest.from_json(with_facts.to_json())


def test_the_command_names_ranges_of_open_sizes_alone(engine: EngineSpec, manifest: Manifest) -> None:
    """A range of a size that the bundle has fixed would be refused."""
    dims = {"rows": 4, "height": 64, "width": 96}
    assert "--dynamic" not in build_command(engine, dims, manifest.stages["unet"].inputs)
    opened, profiled = open_batch(manifest, engine, (1, 2))
    assert build_command(profiled, dims, opened.stages["unet"].inputs).endswith("fp32 --dynamic rows=4:4:4")
    sample = dataclasses.replace(engine.inputs[0], shape=("rows", 4, 16, "latent_height/2", 8))
    assert build_command(engine, dims, (sample,)).endswith("fp32 --dynamic height=64:64:64 --dynamic rows=4:4:4")
