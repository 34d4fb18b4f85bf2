"""What GPUs can do at best, each number with where it was read.

Tensor-core rates are dense, in FLOP per streaming multiprocessor and clock. On GeForce cards FP32 accumulation runs at
half the rate of FP16 accumulation; on Hopper at the same. FP32 itself is the plain cores' rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...runtime.errors import UserError

_GEFORCE = {("fp16", "fp16"): 1024, ("fp16", "fp32"): 512, ("fp32", "fp32"): 256}
ARCHITECTURES: dict[str, dict[tuple[str, str], int]] = {
    # Peaks of the cards below are these rates times multiprocessors times boost clock: 3060 51.0, 4090 330.3,
    # 5090 419.0 TFLOP/s in FP16 with FP16 accumulation (hmc-tech.com lists the same products).
    "ampere": _GEFORCE,
    "ada": {**_GEFORCE, ("fp8", "fp16"): 2048, ("fp8", "fp32"): 1024},
    "blackwell": {**_GEFORCE, ("fp8", "fp16"): 2048, ("fp8", "fp32"): 1024},
    # 989.4 TFLOP/s FP16 and 1978.9 FP8 at 1.83 GHz on 132 multiprocessors (glennklockwood.com/garden/processors/h100).
    "hopper": {
        ("fp16", "fp16"): 4096,
        ("fp16", "fp32"): 4096,
        ("fp8", "fp16"): 8192,
        ("fp8", "fp32"): 8192,
        ("fp32", "fp32"): 256,
    },
}
PRECISIONS = ("fp32", "fp16", "fp8")
ACCUMULATIONS = ("fp16", "fp32")


@dataclass(frozen=True)
class Gpu:
    """One GPU at one power limit."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    """Boost clock under the power limit, Hz. Sustained clocks of long runs are lower."""
    bandwidth: float
    """Bytes a second."""
    memory: int
    """Bytes."""
    power: float | None
    """Watts; None where it is not known."""
    source: str

    def peak(self, precision: str, accumulation: str) -> float:
        """Dense FLOP/s.

        Raises:
            UserError: the GPU has no such arithmetic.
        """
        rates = ARCHITECTURES[self.architecture]
        # Only tensor cores know a narrower accumulator.
        key = (precision, "fp32" if precision == "fp32" else accumulation)
        if key not in rates:
            choice = ", ".join(sorted({known for known, _ in rates}))
            raise UserError(f"{self.name} has no {precision} arithmetic: choose --precision from {choice}.")
        return rates[key] * self.multiprocessors * self.clock


@dataclass(frozen=True)
class GpuModel:
    """A row of the table; clocks are boost clocks by power limit in watts."""

    name: str
    architecture: str
    multiprocessors: int
    clocks: dict[float, float]
    bandwidth: float
    memory: int
    source: str


_GIB = 2**30
GPUS: dict[str, GpuModel] = {
    "rtx-4060-laptop": GpuModel(
        "RTX 4060 Laptop",
        "ada",
        24,
        # 50 W, between two listed limits, comes to 1.60 GHz.
        {35: 1.470e9, 45: 1.520e9, 60: 1.750e9, 90: 2.010e9, 110: 2.300e9, 115: 2.370e9},
        256e9,
        8 * _GIB,
        "3072 cores, 16 Gbit/s on 128 bits, 1470 MHz at 35 W to 2370 MHz at 115 W: data-check.eu, "
        "nvidia-geforce-rtx-4060-laptop-gpu; clocks at 45, 60, 90, 110 W: hmc-tech.com, pages of the card by limit",
    ),
    "rtx-4060": GpuModel(
        "RTX 4060", "ada", 24, {115: 2.460e9}, 272e9, 8 * _GIB, "fpsbench.com, nvidia-geforce-rtx-4060"
    ),
    "rtx-3060": GpuModel(
        "RTX 3060 12 GB", "ampere", 28, {170: 1.777e9}, 360e9, 12 * _GIB, "pcpartdb.com, nvidia-geforce-rtx-3060-12-gb"
    ),
    "rtx-4070": GpuModel(
        "RTX 4070", "ada", 46, {200: 2.475e9}, 504e9, 12 * _GIB, "thefpsreview.com, GeForce RTX 4070 specifications"
    ),
    "rtx-4090": GpuModel(
        "RTX 4090", "ada", 128, {450: 2.520e9}, 1008e9, 24 * _GIB, "thefpsreview.com, GeForce RTX 4090 specifications"
    ),
    "rtx-5090": GpuModel(
        "RTX 5090",
        "blackwell",
        170,
        {575: 2.407e9},
        1792e9,
        32 * _GIB,
        "Linux Format, May 2025 (170 multiprocessors, 2407 MHz, 838 TFLOP/s sparse FP16, 1792 GB/s, 575 W)",
    ),
    "h100": GpuModel(
        "H100 SXM", "hopper", 132, {700: 1.83e9}, 3350e9, 80 * 10**9, "glennklockwood.com/garden/processors/h100"
    ),
    "h200": GpuModel(
        "H200 SXM",
        "hopper",
        132,
        {700: 1.83e9},
        4800e9,
        141 * 10**9,
        "as the H100 with 141 GB at 4.8 TB/s: lzwjava.github.io/nvidia-h200-gpu-specs-en",
    ),
}


def find_gpu(name: str, power: float | None = None) -> Gpu:
    """A GPU of the table at a power limit in watts; without one at 50 W on the laptop card, else at its own.

    Raises:
        UserError: no such GPU, or a limit outside the listed ones.
    """
    model = GPUS.get(name)
    if model is None:
        raise UserError(f"GPU {name!r} is not in the table ({', '.join(GPUS)}): choose one, or describe it by flags.")
    limits = list(model.clocks)
    if power is None:
        power = 50.0 if len(limits) > 1 else limits[0]
    if not limits[0] <= power <= limits[-1]:
        span = f"{limits[0]:g} W" if len(limits) == 1 else f"{limits[0]:g} to {limits[-1]:g} W"
        raise UserError(f"--power {power:g} is outside what {model.name} is listed with ({span}): give --clock too.")
    clock = _between(model.clocks, power)
    return Gpu(
        model.name,
        model.architecture,
        model.multiprocessors,
        clock,
        model.bandwidth,
        model.memory,
        power,
        model.source,
    )


def describe_gpu(
    name: str,
    power: float | None = None,
    *,
    architecture: str | None = None,
    multiprocessors: int | None = None,
    clock_ghz: float | None = None,
    bandwidth_gb: float | None = None,
    memory_gb: float | None = None,
) -> Gpu:
    """A GPU of the table with some numbers replaced, or any other with all of them given.

    Raises:
        UserError: a number is missing, not positive, or the architecture unknown.
    """
    given = {
        "--architecture": architecture,
        "--sm": multiprocessors,
        "--clock": clock_ghz,
        "--bandwidth": bandwidth_gb,
        "--memory": memory_gb,
    }
    for flag, value in given.items():
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise UserError(f"{flag} must be a positive number, not {value:g}.")
    if architecture is not None and architecture not in ARCHITECTURES:
        raise UserError(f"--architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}.")
    if name in GPUS:
        # A given clock stands for any power limit.
        gpu = find_gpu(name, None if clock_ghz is not None else power)
    else:
        missing = [flag for flag, value in given.items() if value is None]
        if missing:
            raise UserError(
                f"GPU {name!r} is not in the table ({', '.join(GPUS)}): choose one, or give {', '.join(missing)} too."
            )
        gpu = Gpu(name, "", 0, 0.0, 0.0, 0, power, "")
    changes: dict[str, object] = {}
    if architecture is not None:
        changes["architecture"] = architecture
    if multiprocessors is not None:
        changes["multiprocessors"] = multiprocessors
    if clock_ghz is not None:
        changes |= {"clock": clock_ghz * 1e9, "power": power}
    if bandwidth_gb is not None:
        changes["bandwidth"] = bandwidth_gb * 1e9
    if memory_gb is not None:
        changes["memory"] = int(memory_gb * _GIB)
    if changes:
        changes["source"] = f"{gpu.source}; changed by flags" if gpu.source else "given by flags"
    return replace(gpu, **changes)  # type: ignore[arg-type]


def _between(clocks: dict[float, float], power: float) -> float:
    """Clock at a power limit, on straight lines between the listed ones."""
    limits = list(clocks)
    if power in clocks:
        return clocks[power]
    above = next(index for index, limit in enumerate(limits) if limit > power)
    low, high = limits[above - 1], limits[above]
    share = (power - low) / (high - low)
    return clocks[low] + share * (clocks[high] - clocks[low])
