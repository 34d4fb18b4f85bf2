"""Name, memory in use and energy of each GPU, read through NVML; empty on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Value = TypeVar("_Value")


class DeviceMeter:
    """Memory and energy of one GPU, through ``nvidia-ml-py``."""

    def __init__(self, nvml: Any, index: int = 0) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self._idle_bytes = self._used()

    @classmethod
    def open(cls, index: int = 0) -> DeviceMeter | None:
        """The meter of a GPU, or None where NVML, a driver or the GPU is missing."""
        nvml = _load()
        return None if nvml is None or index >= nvml.nvmlDeviceGetCount() else cls(nvml, index)

    def used_bytes(self, processes: Iterable[int]) -> int:
        """Device memory of these processes; where the driver does not tell processes apart (Windows), what is used
        beyond what was before.
        """
        wanted = set(processes)
        running = self._ask(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        known = [process.usedGpuMemory for process in running if process.pid in wanted and process.usedGpuMemory]
        return sum(known) if known else max(0, self._used() - self._idle_bytes)

    def energy_joules(self) -> float | None:
        """Energy since the driver was loaded; the counter moves some ten times a second. None before Volta."""
        millijoules = self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if millijoules is None else millijoules / 1000

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory, power limit in watts, and clock limit in MHz."""
        nvml, handle = self._nvml, self._handle
        limit = self._ask(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
        return {
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
            "memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "power_limit_watts": None if limit is None else limit / 1000,
            "max_sm_clock_mhz": self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        }

    def _used(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _ask(self, question: Callable[[], _Value]) -> _Value | None:
        """An answer, or None where this card or driver does not give it."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def describe_gpus() -> list[dict[str, Any]]:
    """Every GPU that NVML knows."""
    nvml = _load()
    return [] if nvml is None else [DeviceMeter(nvml, index).describe() for index in range(nvml.nvmlDeviceGetCount())]


def _load() -> Any:
    """pynvml, initialised; None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
