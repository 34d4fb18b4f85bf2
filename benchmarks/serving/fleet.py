"""One server with 1 to 1,000 cards: a simulation from the server's measured costs and a card's stated times.

    python -m consisti2v_rt.benchmarks.serving.fleet --bundle BUNDLE --output benchmarks/results/fleet.json

The server's process is measured: processor seconds for a video and for a step, as differences between runs of the real
server. A card is stated: the predicted seconds of a video. The simulation has Poisson arrivals, one queue in order of
arrival, cards that fail at random and start again, and a front process that handles one thing at a time.
"""

from __future__ import annotations

import heapq
import json
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...runtime.commands.console import PlainParser, echo, print_error

_VIDEOS = 30
_FEW, _MANY = 1, 21
_LOADS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Front:
    """Processor seconds of the server's own process."""

    per_video: float
    """Upload, queue, states, result; without the steps."""
    per_step: float
    """An event and what a client that follows it costs."""


@dataclass(frozen=True)
class Fleet:
    """What is simulated."""

    cards: int
    load: float
    """Share of the cards' time that the arrivals ask for."""
    video_seconds: float
    """Of one video on one card."""
    steps: int
    front: Front
    hours_between_failures: float = 720.0
    """Of one card."""
    restart_seconds: float = 60.0
    """A worker's start with all its stages."""
    batch: int = 1
    """Most waiting videos that a card takes at once."""
    marginal: float = 0.9
    """What each further video of a batch adds, as a share of a single one's time."""


@dataclass(frozen=True)
class Outcome:
    """What came of a simulated run; times in seconds."""

    videos: int
    mean_wait: float
    median_wait: float
    p99_wait: float
    """From the arrival to the first step."""
    repeated: int
    """Videos that began again because their card failed."""
    card_use: float
    """Share of the cards' time that made videos."""
    front_use: float
    """Share of the front process's time that it was busy."""
    card_seconds_per_video: float


def simulate(fleet: Fleet, videos: int = 20_000, seed: int = 0) -> Outcome:
    """Run `videos` arrivals through a fleet."""
    noise = np.random.default_rng(seed)
    gaps = noise.exponential(fleet.video_seconds / (fleet.cards * fleet.load), videos)
    arrivals = np.cumsum(gaps)
    front = fleet.front.per_video + fleet.steps * fleet.front.per_step
    failure = fleet.video_seconds / (fleet.hours_between_failures * 3600)
    # The front takes each video's cost before it can start: all that it will spend on it, as it cannot fall behind.
    done = 0.0
    through = np.empty(videos)
    for number, arrival in enumerate(arrivals):
        done = max(done, arrival) + front
        through[number] = done
    free = [(0.0, card) for card in range(fleet.cards)]
    heapq.heapify(free)
    queue = deque(enumerate(through.tolist()))
    waits, used, repeated, end = np.zeros(videos), 0.0, 0, 0.0
    while queue:
        at, card = heapq.heappop(free)
        taken = [queue.popleft()]
        start = max(at, taken[0][1])
        while queue and len(taken) < fleet.batch and queue[0][1] <= start:
            taken.append(queue.popleft())
        seconds = fleet.video_seconds * (1 + fleet.marginal * (len(taken) - 1))
        if noise.random() < failure * seconds / fleet.video_seconds:
            lost = noise.random() * seconds
            used += lost
            repeated += len(taken)
            heapq.heappush(free, (start + lost + fleet.restart_seconds, card))
            queue.extendleft((number, start + lost) for number, _ in reversed(taken))
            continue
        for number, _ in taken:
            waits[number] = start - arrivals[number]
        used += seconds
        end = max(end, start + seconds)
        heapq.heappush(free, (start + seconds, card))
    return Outcome(
        videos,
        float(np.mean(waits)),
        float(np.median(waits)),
        float(np.percentile(waits, 99)),
        repeated,
        used / (fleet.cards * end),
        videos * front / end,
        used / videos,
    )


def most_cards(video_seconds: float, steps: int, front: Front) -> float:
    """Cards that one front process can keep busy."""
    return video_seconds / (front.per_video + steps * front.per_step)


def measure_front(bundle: str, videos: int = _VIDEOS) -> Front:
    """Run the real server and read its own process's processor time.

    Raises:
        RuntimeError: the server does not start.
    """
    few, many = (_front_seconds(bundle, steps, videos) for steps in (_FEW, _MANY))
    per_step = max(0.0, (many - few) / (_MANY - _FEW))
    return Front(few - _FEW * per_step, per_step)


def _front_seconds(bundle: str, steps: int, videos: int) -> float:
    """Processor seconds of the server's process for each video, each followed by one client."""
    import psutil

    from .running import IMAGE, events_of, serving

    fields = {"prompt": "zoom in", "num_inference_steps": str(steps), "guidance_scale": "1"}
    options = ("--device", "cpu", "--threads", "1", "--no-previews")
    with (
        tempfile.TemporaryDirectory() as data,
        serving(Path(data), bundle, *options) as server,
        server.client() as client,
    ):
        own = psutil.Process(server.process.pid)
        before = own.cpu_times()
        for seed in range(videos):
            files = {"input_reference": IMAGE.read_bytes()}
            video = client.post("/v1/videos", data=fields | {"seed": str(seed)}, files=files).raise_for_status().json()
            for _ in events_of(client, video["id"]):
                pass
            client.get(f"/v1/videos/{video['id']}/content").raise_for_status()
        after = own.cpu_times()
    return (after.user + after.system - before.user - before.system) / videos


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the server, simulate the fleets, write the record and its picture."""
    parser = PlainParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--bundle", required=True, help="a small bundle: only the server's own process is measured")
    parser.add_argument("--video-seconds", type=float, default=12.3, help="of one video on one card")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; a picture is drawn beside it")
    options = parser.parse_args(arguments)
    try:
        front = measure_front(options.bundle)
        write(options.output, front, options.video_seconds, options.steps)
    except UserError as error:
        print_error(error)
        sys.exit(2)


def write(output: Path, front: Front, video_seconds: float, steps: int) -> None:
    """Simulate fleets of 1 to 1,000 cards, write the record and the picture, and print the table."""
    runs = []
    kinds = [(load, 1) for load in _LOADS] + [(_LOADS[-1], 4)]
    for cards in (1, 3, 10, 30, 100, 300, 1000):
        for load, batch in kinds:
            fleet = Fleet(cards, load, video_seconds, steps, front, batch=batch)
            out = simulate(fleet)
            runs.append({"cards": cards, "load": load, "batch": batch, **asdict(out)})
            echo(
                f"{cards:5} cards, load {load:.2f}, batch {batch}: wait {out.median_wait:7.2f} s, 99 % "
                f"{out.p99_wait:7.2f} s, front {out.front_use:6.1%}, cards {out.card_use:6.1%}, "
                f"{out.card_seconds_per_video:.2f} card s a video"
            )
    limit = most_cards(video_seconds, steps, front)
    echo(f"one front keeps {limit:.0f} cards busy")
    record: dict[str, Any] = {
        "simulation": True,
        "front": asdict(front),
        "video_seconds": video_seconds,
        "steps": steps,
    }
    record |= {
        "most_cards": limit,
        "fleet": {"hours_between_failures": 720.0, "restart_seconds": 60.0, "marginal": 0.9},
        "runs": runs,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    _draw(output.with_suffix(".png"), runs, limit)


def _draw(path: Path, runs: Sequence[dict[str, Any]], limit: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for load, colour in zip(_LOADS, ("#4477aa", "#228833", "#ee6677"), strict=True):
        chosen = [run for run in runs if run["load"] == load and run["batch"] == 1]
        cards = [run["cards"] for run in chosen]
        axes.plot(cards, [max(run["p99_wait"], 1e-3) for run in chosen], "o-", color=colour, label=f"load {load:g}")
    axes.axvline(limit, color="#888888", linestyle="--", label="one front process is full")
    axes.set(xscale="log", yscale="log", xlabel="cards", ylabel="wait before the first step, 99 % (s)")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
