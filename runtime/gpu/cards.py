"""The GPUs that this program knows by name: what ``--target`` builds for and ``--predict`` calculates with.

Every card has its compute capability. Where clock, bandwidth and memory are given too, times can be predicted. The page
``docs/gpus.md`` lists the table; a test compares the two.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

_GIB = 2**30
_PUBLISHED = "NVIDIA's published specifications of the reference card (boost clock)"


@dataclass(frozen=True)
class Performance:
    """What a card can do at best, as published."""

    architecture: str
    """A row of the rates in ``benchmarks/cost/gpus.py``."""
    multiprocessors: int
    clocks: dict[float, float]
    """Boost clocks in Hz by power limit in watts, rising."""
    bandwidth: float
    """Bytes a second."""
    memory: int
    """Bytes."""
    source: str = _PUBLISHED


@dataclass(frozen=True)
class Card:
    """One GPU model."""

    name: str
    """For people: "RTX 4060 Laptop"."""
    compute_capability: str
    """Such as "8.9"."""
    performance: Performance | None = None
    """None: not in the table, and never guessed."""
    runs_rtx_engines: bool = True
    """Whether TensorRT for RTX runs on it: RTX cards since Turing, and their data-centre relatives."""

    @property
    def target(self) -> str:
        """As ``--target`` and folders of engines write it: "rtx4060laptop"."""
        return normalised(self.name)

    @property
    def slug(self) -> str:
        """As ``--predict`` and its records write it: "rtx-4060-laptop"."""
        return self.name.lower().replace(" ", "-")


def _geforce(
    name: str,
    architecture: str,
    multiprocessors: int,
    megahertz: int,
    gigabytes_per_second: float,
    gib: int,
    watts: int,
) -> Card:
    """A desktop card with its published numbers."""
    capability = {"turing": "7.5", "ampere": "8.6", "ada": "8.9", "blackwell": "12.0"}[architecture]
    clocks = {float(watts): megahertz * 1e6}
    numbers = Performance(architecture, multiprocessors, clocks, gigabytes_per_second * 1e9, gib * _GIB)
    return Card(name, capability, numbers)


def _with_source(card: Card, source: str) -> Card:
    assert card.performance is not None
    return replace(card, performance=replace(card.performance, source=source))


def _plain(capability: str, names: str, *, runs_rtx_engines: bool = True) -> tuple[Card, ...]:
    """Cards known by compute capability alone; names with commas between."""
    return tuple(Card(name.strip(), capability, runs_rtx_engines=runs_rtx_engines) for name in names.split(","))


_RTX_4060_LAPTOP = Performance(
    "ada",
    24,
    # 50 W, between two listed limits, comes to 1.60 GHz.
    {35: 1.470e9, 45: 1.520e9, 60: 1.750e9, 90: 2.010e9, 110: 2.300e9, 115: 2.370e9},
    256e9,
    8 * _GIB,
    "3072 cores, 16 Gbit/s on 128 bits, 1470 MHz at 35 W to 2370 MHz at 115 W: data-check.eu, "
    "nvidia-geforce-rtx-4060-laptop-gpu; clocks at 45, 60, 90, 110 W: hmc-tech.com, pages of the card by limit",
)

CARDS: tuple[Card, ...] = (
    # -- Turing --
    *_plain("7.5", "GTX 1630, GTX 1650, GTX 1650 Super, GTX 1660, GTX 1660 Super, GTX 1660 Ti", runs_rtx_engines=False),
    *_plain("7.5", "GTX 1650 Laptop, GTX 1650 Ti Laptop, GTX 1660 Ti Laptop", runs_rtx_engines=False),
    _geforce("RTX 2060", "turing", 30, 1680, 336, 6, 160),
    _geforce("RTX 2060 Super", "turing", 34, 1650, 448, 8, 175),
    _geforce("RTX 2070", "turing", 36, 1620, 448, 8, 175),
    _geforce("RTX 2070 Super", "turing", 40, 1770, 448, 8, 215),
    _geforce("RTX 2080", "turing", 46, 1710, 448, 8, 215),
    _geforce("RTX 2080 Super", "turing", 48, 1815, 496, 8, 250),
    _geforce("RTX 2080 Ti", "turing", 68, 1545, 616, 11, 250),
    *_plain("7.5", "RTX 2060 12GB, RTX 2060 Laptop, RTX 2070 Laptop, RTX 2070 Super Laptop, RTX 2080 Laptop"),
    *_plain("7.5", "RTX 2080 Super Laptop, Titan RTX, T4"),
    *_plain("7.5", "Quadro RTX 3000, Quadro RTX 4000, Quadro RTX 5000, Quadro RTX 6000, Quadro RTX 8000"),
    # -- Ampere --
    _geforce("RTX 3050", "ampere", 20, 1777, 224, 8, 130),
    _with_source(_geforce("RTX 3060", "ampere", 28, 1777, 360, 12, 170), "pcpartdb.com, nvidia-geforce-rtx-3060-12-gb"),
    _geforce("RTX 3060 Ti", "ampere", 38, 1665, 448, 8, 200),
    _geforce("RTX 3070", "ampere", 46, 1725, 448, 8, 220),
    _geforce("RTX 3070 Ti", "ampere", 48, 1770, 608, 8, 290),
    _geforce("RTX 3080", "ampere", 68, 1710, 760, 10, 320),
    _geforce("RTX 3080 12GB", "ampere", 70, 1710, 912, 12, 350),
    _geforce("RTX 3080 Ti", "ampere", 80, 1665, 912, 12, 350),
    _geforce("RTX 3090", "ampere", 82, 1695, 936, 24, 350),
    _geforce("RTX 3090 Ti", "ampere", 84, 1860, 1008, 24, 450),
    *_plain("8.6", "RTX 3050 6GB, RTX 3060 8GB, RTX 2050 Laptop, RTX 3050 Laptop, RTX 3050 Ti Laptop"),
    *_plain("8.6", "RTX 3060 Laptop, RTX 3070 Laptop, RTX 3070 Ti Laptop, RTX 3080 Laptop, RTX 3080 Ti Laptop"),
    *_plain("8.6", "RTX A400, RTX A1000, RTX A2000, RTX A4000, RTX A4500, RTX A5000, RTX A5500, RTX A6000"),
    *_plain("8.6", "RTX A500 Laptop, RTX A1000 Laptop, RTX A2000 Laptop, RTX A3000 Laptop, RTX A4000 Laptop"),
    *_plain("8.6", "RTX A4500 Laptop, RTX A5000 Laptop, RTX A5500 Laptop, A2, A10, A10G, A16, A40"),
    *_plain("8.0", "A30, A100"),
    # -- Ada Lovelace --
    _with_source(_geforce("RTX 4060", "ada", 24, 2460, 272, 8, 115), "fpsbench.com, nvidia-geforce-rtx-4060"),
    _geforce("RTX 4060 Ti", "ada", 34, 2535, 288, 8, 160),
    _geforce("RTX 4060 Ti 16GB", "ada", 34, 2535, 288, 16, 165),
    _with_source(
        _geforce("RTX 4070", "ada", 46, 2475, 504, 12, 200), "thefpsreview.com, GeForce RTX 4070 specifications"
    ),
    _geforce("RTX 4070 Super", "ada", 56, 2475, 504, 12, 220),
    _geforce("RTX 4070 Ti", "ada", 60, 2610, 504, 12, 285),
    _geforce("RTX 4070 Ti Super", "ada", 66, 2610, 672, 16, 285),
    _geforce("RTX 4080", "ada", 76, 2505, 717, 16, 320),
    _geforce("RTX 4080 Super", "ada", 80, 2550, 736, 16, 320),
    _with_source(
        _geforce("RTX 4090", "ada", 128, 2520, 1008, 24, 450), "thefpsreview.com, GeForce RTX 4090 specifications"
    ),
    Card("RTX 4060 Laptop", "8.9", _RTX_4060_LAPTOP),
    *_plain("8.9", "RTX 4090 D, RTX 4050 Laptop, RTX 4070 Laptop, RTX 4080 Laptop, RTX 4090 Laptop"),
    *_plain("8.9", "RTX 2000 Ada, RTX 4000 Ada, RTX 4000 SFF Ada, RTX 4500 Ada, RTX 5000 Ada, RTX 5880 Ada"),
    *_plain("8.9", "RTX 6000 Ada, RTX 500 Ada Laptop, RTX 1000 Ada Laptop, RTX 2000 Ada Laptop, RTX 3000 Ada Laptop"),
    *_plain("8.9", "RTX 3500 Ada Laptop, RTX 4000 Ada Laptop, RTX 5000 Ada Laptop, L4, L40, L40S"),
    # -- Hopper and Blackwell in the data centre --
    Card(
        "H100",
        "9.0",
        Performance("hopper", 132, {700: 1.83e9}, 3350e9, 80 * 10**9, "SXM: glennklockwood.com/garden/processors/h100"),
        False,
    ),
    Card(
        "H200",
        "9.0",
        Performance(
            "hopper",
            132,
            {700: 1.83e9},
            4800e9,
            141 * 10**9,
            "SXM, as the H100 with 141 GB at 4.8 TB/s: lzwjava.github.io/nvidia-h200-gpu-specs-en",
        ),
        False,
    ),
    *_plain("9.0", "H100 PCIe, H100 NVL, H200 NVL, H800, H20, GH200", runs_rtx_engines=False),
    *_plain("10.0", "B100, B200, GB200", runs_rtx_engines=False),
    # -- Blackwell --
    _geforce("RTX 5050", "blackwell", 20, 2572, 320, 8, 130),
    _geforce("RTX 5060", "blackwell", 30, 2497, 448, 8, 145),
    _geforce("RTX 5060 Ti", "blackwell", 36, 2572, 448, 8, 180),
    _geforce("RTX 5060 Ti 16GB", "blackwell", 36, 2572, 448, 16, 180),
    _geforce("RTX 5070", "blackwell", 48, 2512, 672, 12, 250),
    _geforce("RTX 5070 Ti", "blackwell", 70, 2452, 896, 16, 300),
    _geforce("RTX 5080", "blackwell", 84, 2617, 960, 16, 360),
    _with_source(
        _geforce("RTX 5090", "blackwell", 170, 2407, 1792, 32, 575),
        "Linux Format, May 2025 (170 multiprocessors, 2407 MHz, 838 TFLOP/s sparse FP16, 1792 GB/s, 575 W)",
    ),
    *_plain("12.0", "RTX 5090 D, RTX 5090 D v2, RTX 5050 Laptop, RTX 5060 Laptop, RTX 5070 Laptop, RTX 5070 Ti Laptop"),
    *_plain("12.0", "RTX 5080 Laptop, RTX 5090 Laptop, RTX PRO 2000 Blackwell, RTX PRO 4000 Blackwell"),
    *_plain("12.0", "RTX PRO 4000 SFF Blackwell, RTX PRO 4500 Blackwell, RTX PRO 5000 Blackwell"),
    *_plain("12.0", "RTX PRO 6000 Blackwell, RTX PRO 500 Blackwell Laptop, RTX PRO 1000 Blackwell Laptop"),
    *_plain("12.0", "RTX PRO 2000 Blackwell Laptop, RTX PRO 3000 Blackwell Laptop, RTX PRO 4000 Blackwell Laptop"),
    *_plain("12.0", "RTX PRO 5000 Blackwell Laptop"),
    *_plain("12.1", "GB10"),
)

FAMILIES = {
    "7.5": "Turing",
    "8.0": "Ampere",
    "8.6": "Ampere",
    "8.9": "Ada Lovelace",
    "9.0": "Hopper",
    "10.0": "Blackwell, data centre",
    "12.0": "Blackwell",
    "12.1": "Blackwell, DGX Spark",
}


def is_data_centre(compute_capability: str) -> bool:
    """Whether TensorRT for RTX knows no card of this compute capability, "9.0" or any 9.x and 10.x; TensorRT does."""
    return compute_capability.partition(".")[0] in ("9", "10")


def engine_backend_for(compute_capability: str) -> str:
    """The library that builds and runs engines for a card: tensorrt-rtx, or tensorrt where that knows no such card."""
    return "tensorrt" if is_data_centre(compute_capability) else "tensorrt-rtx"


# Words that drivers, shops and people add, and that name no other card.
_FILLING = re.compile(
    r"nvidia|geforce|tesla|graphics|gpu|card|design|generation|gen|with|edition|workstation|server|hbm\d?e?|sxm\d?"
)
_LAPTOP = re.compile(r"notebook|mobile|laptop")
_MEMORY = re.compile(r"([1-9]\d{0,2})gi?b")


def normalised(name: str) -> str:
    """One spelling for all: "NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop" -> "rtx4060laptop".

    "Max-Q" is a laptop's card, but for the workstation cards of 2025, which are sold as such for desktops.
    """
    text = name.lower()
    text = re.sub(r"max[\s_-]*q", "" if "pro" in text else "laptop", text)
    text = re.sub(r"[^a-z0-9]+", " ", _LAPTOP.sub("laptop", text))
    # "24 GB" is one word.
    text = re.sub(r"(\d+) (gi?b)\b", r"\1\2", text)
    words = [word for word in text.split() if not _FILLING.fullmatch(word)]
    # Wherever it was written, the memory's word stands behind the others, and the laptop's last.
    joined = "".join(sorted(words, key=lambda word: _MEMORY.fullmatch(word) is not None))
    return joined.replace("laptop", "") + "laptop" if "laptop" in joined else joined


_BY_NAME = {normalised(card.name): card for card in CARDS}
_ALIASES = {
    "a100pcie": "a100",
    "dgxspark": "gb10",
    "rtx2050": "rtx2050laptop",
    "rtx4050": "rtx4050laptop",
}


def find_card(name: str) -> Card | None:
    """The card of a name, however it is written; None: it is not in the table."""
    key = normalised(name)
    laptop = "laptop" if key.endswith("laptop") else ""
    key = _ALIASES.get(key, key)
    if key in _BY_NAME:
        return _BY_NAME[key]
    # "RTX 4090 24 GB" is the RTX 4090; "RTX 4090 48 GB" is none that is known.
    bare = key.removesuffix("laptop")
    for length in range(len(bare) - 3, 0, -1):
        size = _MEMORY.fullmatch(bare[length:])
        base = bare[:length] + laptop
        card = _BY_NAME.get(_ALIASES.get(base, base))
        if size is not None and card is not None:
            return card if _holds(card, int(size[1])) else None
    return None


def _holds(card: Card, gigabytes: int) -> bool:
    """Whether a card has that much memory, as far as the table knows."""
    if card.performance is None:
        return True
    unit = _GIB if card.performance.memory % _GIB == 0 else 10**9
    return card.performance.memory == gigabytes * unit


def closest(name: str, choices: tuple[str, ...] = ()) -> str:
    """A suggestion for an unknown name: "; did you mean RTX 4070", or nothing.

    Args:
        name: as it was written.
        choices: other words that were possible, beside the cards.
    """
    known = {normalised(choice): choice for choice in choices} | {key: card.name for key, card in _BY_NAME.items()}
    # "4090" and "A6000" are meant as RTX cards.
    known |= {key.removeprefix("rtx"): card.name for key, card in _BY_NAME.items() if key.startswith("rtx")}
    found = difflib.get_close_matches(normalised(name), known, n=2, cutoff=0.75)
    names = list(dict.fromkeys(known[key] for key in found))
    return f"; did you mean {' or '.join(names)}" if names else ""


def table() -> str:
    """The cards in Markdown, a row for each compute capability; a star: its times can be predicted."""
    lines = ["| compute capability | architecture | cards |", "|---|---|---|"]
    for capability, family in FAMILIES.items():
        names = [
            card.name + ("*" if card.performance is not None else "")
            for card in CARDS
            if card.compute_capability == capability
        ]
        lines.append(f"| {capability} | {family} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"
