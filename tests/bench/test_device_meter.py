"""NVML's answers, from a stand-in; with a GPU, from the GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from consisti2v_rt.benchmarks.bench.machine import GpuMeter, describe_machine


class FakeNvml:
    """The functions of ``pynvml`` that are called."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts_energy: bool = True, tells_processes: bool = True) -> None:
        self.used, self.millijoules = 1000, 5000
        self.counts_energy, self.tells_processes = counts_energy, tells_processes

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=self.used, total=8 * 2**30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        sizes = {7: 300, 8: 40, 9: 5}
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=size if self.tells_processes else None)
            for pid, size in sizes.items()
        ]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts_energy:
            raise self.NVMLError
        return self.millijoules


def test_memory_of_given_processes() -> None:
    assert GpuMeter(FakeNvml()).used_bytes([7, 9]) == 305


def test_memory_beyond_what_was_used_where_processes_are_not_told_apart() -> None:
    nvml = FakeNvml(tells_processes=False)
    meter = GpuMeter(nvml)
    nvml.used += 77
    assert meter.used_bytes([7]) == 77


def test_energy_in_joules_or_not_at_all() -> None:
    assert GpuMeter(FakeNvml()).energy_joules() == 5.0
    assert GpuMeter(FakeNvml(counts_energy=False)).energy_joules() is None


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    meter = GpuMeter.open()
    if meter is None:
        pytest.skip("no NVIDIA GPU with a driver")
    described = describe_machine()["gpus"][0]
    assert described["name"] and described["memory_bytes"] > 2**30 and described["driver"]
    first, second = meter.energy_joules(), meter.energy_joules()
    if first is None or second is None:
        pytest.skip("this GPU has no energy counter")
    assert second >= first > 0
