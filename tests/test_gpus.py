"""One table of GPUs: every spelling of a card finds it, and targets, predictions and the page say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import consisti2v_rt
from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.cost.gpus import ARCHITECTURES, describe_gpu
from consisti2v_rt.export.engines.libraries import check_machine, find_engine_backend
from consisti2v_rt.export.engines.targets import TARGETS, check_precision, find_target
from consisti2v_rt.runtime.gpu.cards import CARDS, FAMILIES, closest, find_card, is_data_centre, normalised, table
from consisti2v_rt.runtime.gpu.device import GpuStatus

ROOT = Path(consisti2v_rt.__file__).parent
NO_GPU = GpuStatus(False, "no NVIDIA driver is installed")


def test_names_are_different_after_normalisation() -> None:
    keys = [normalised(card.name) for card in CARDS]
    assert len(set(keys)) == len(keys) and not set(keys) & set(TARGETS)


@pytest.mark.parametrize(
    ("card", "spellings"),
    [
        ("RTX 5090", ["rtx5090", "rtx-5090", "RTX 5090", "NVIDIA GeForce RTX 5090", "rtx_5090", "RTX 5090 32GB"]),
        (
            "RTX 4060 Laptop",
            ["rtx-4060-laptop", "NVIDIA GeForce RTX 4060 Laptop GPU", "laptop RTX 4060"],
        ),
        ("RTX 2070 Laptop", ["NVIDIA GeForce RTX 2070 with Max-Q Design", "RTX 2070 mobile"]),
        ("RTX 4070 Ti Super", ["NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper"]),
        ("RTX 6000 Ada", ["NVIDIA RTX 6000 Ada Generation"]),
        ("RTX PRO 6000 Blackwell", ["NVIDIA RTX PRO 6000 Blackwell Workstation Edition"]),
        ("RTX 3060", ["RTX 3060 12 GB", "rtx306012gb"]),
        ("RTX 3060 8GB", ["RTX 3060 8GB"]),
        ("A100", ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"]),
        ("H100", ["NVIDIA H100 80GB HBM3", "h100"]),
    ],
)
def test_spellings(card: str, spellings: list[str]) -> None:
    for spelling in spellings:
        found = find_card(spelling)
        assert found is not None and found.name == card, spelling


@pytest.mark.parametrize("name", ["", "RTX", "RTX 9090", "RTX 4090 48GB", "laptop", "12GB", "RTX 5090 Ti", "[red]"])
def test_what_is_no_card(name: str) -> None:
    assert find_card(name) is None


def test_every_card_is_a_target_and_a_prediction_or_refused_by_name() -> None:
    rtx = find_engine_backend("tensorrt-rtx")
    for card in CARDS:
        for name in (card.name, card.target, card.slug, f"NVIDIA GeForce {card.name}"):
            target = find_target(name, NO_GPU)
            assert (target.name, target.compute_capabilities) == (card.target, (card.compute_capability,))
        if card.compute_capability == "7.5" or is_data_centre(card.compute_capability):
            with pytest.raises(UserError, match="let ONNX Runtime"):
                check_machine(rtx, target, NO_GPU)
        else:
            check_machine(rtx, target, NO_GPU)
        if card.performance is not None:
            assert card.performance.architecture in ARCHITECTURES and describe_gpu(card.target).name == card.name
        else:
            with pytest.raises(UserError, match=f"no clock, bandwidth and memory of the {card.name}"):
                describe_gpu(card.name)


def test_suggestions() -> None:
    assert closest("4090").startswith("; did you mean RTX 4090") and "RTX A6000" in closest("A6000")
    assert closest("voodoo") == ""
    with pytest.raises(UserError, match="did you mean RTX 5090"):
        find_target("rtx5091", NO_GPU)
    with pytest.raises(UserError, match="did you mean RTX 5090"):
        describe_gpu("rtx5091")
    numbers: dict[str, Any] = {"multiprocessors": 84, "clock_ghz": 1.8, "bandwidth_gb": 768, "memory_gb": 48}
    assert describe_gpu("A6000x", architecture="ampere", **numbers).multiprocessors == 84


def test_peaks_are_the_published_ones() -> None:
    """TFLOP/s in FP16 with FP16 accumulation, dense, as NVIDIA's architecture papers give them."""
    for name, tera in (("rtx2080ti", 107.6), ("rtx3080", 119), ("rtx3090", 142), ("rtx4080", 194.9)):
        assert describe_gpu(name).peak("fp16", "fp16") / 1e12 == pytest.approx(tera, rel=5e-3), name
    assert describe_gpu("rtx5080").peak("fp16", "fp16") / 1e12 == pytest.approx(225.1, rel=5e-3)


def test_precisions() -> None:
    for name, precision in (("rtx3090", "fp8"), ("sm75", "int8"), ("sm75", "bf16")):
        with pytest.raises(UserError, match="choose fp16"):
            check_precision(find_target(name, NO_GPU), precision)


def test_the_page_lists_the_table() -> None:
    text = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    assert text.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0] == table()
    assert {card.compute_capability for card in CARDS} == set(FAMILIES)
