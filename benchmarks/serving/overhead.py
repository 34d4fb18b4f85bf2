"""``python -m consisti2v_rt.benchmarks.serving.overhead``: what the server adds to a video, beside the library.

In turns, the library makes a video and writes its mp4, and an idle server is asked for the same video, until its last
event. Both have the same number of threads and run the same networks, whose time varies by several percent from one
process to the next on a shared machine. So the time outside the networks is compared: all of a request, less the stages
that run a graph. The whole time is recorded beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.commands.console import PlainParser
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import StepProgress
from .running import IMAGE, events_of, serving, write_record

_NETWORKS = ("text_encoder", "vae_encoder", "conditioning", "unet", "vae_decoder")


@dataclass(frozen=True)
class _Timing:
    """Seconds of one video."""

    first_step: float
    whole: float
    networks: float
    loop: float

    @classmethod
    def of(cls, first_step: float, whole: float, stages: Mapping[str, float]) -> _Timing:
        return cls(first_step, whole, sum(stages.get(name, 0.0) for name in _NETWORKS), stages["loop"])


def main() -> None:
    """Measure and write the record."""
    parser = PlainParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("serving_overhead.json"))
    asked = parser.parse_args()
    options = {"num_inference_steps": asked.steps, "seed": 1, "guidance_scale": 1.0}
    data = IMAGE.read_bytes()
    library, server = list[_Timing](), list[_Timing]()
    with tempfile.TemporaryDirectory() as folder, ImageToVideo.from_bundle(asked.bundle, threads=1) as model:

        def in_library() -> _Timing:
            first: list[float] = []
            started = time.perf_counter()

            def on_step(progress: StepProgress) -> None:
                first.append(time.perf_counter() - started)

            videos = model(data, "zoom in", callback=on_step, **options)
            videos.save(Path(folder) / "library.mp4")
            return _Timing.of(first[0], time.perf_counter() - started, videos.timings)

        with (
            serving(Path(folder), asked.bundle, "--threads", "1", "--device", "cpu") as running,
            running.client() as client,
        ):

            def on_server() -> _Timing:
                first = 0.0
                started = time.perf_counter()
                fields = {"prompt": "zoom in"} | {name: str(value) for name, value in options.items()}
                video = client.post("/v1/videos", data=fields, files={"input_reference": data}).json()
                for _, name, event in events_of(client, video["id"]):
                    if name == "step" and not first:
                        first = time.perf_counter() - started
                    if name == "completed":
                        return _Timing.of(first, time.perf_counter() - started, event["timings"])
                raise RuntimeError("the video was not completed")

            in_library()
            on_server()
            for _ in range(asked.rounds):
                library.append(in_library())
                server.append(on_server())

    def in_ms(name: str, of: Callable[[_Timing], float]) -> dict[str, float | list[float]]:
        added = [1000 * (of(there) - of(here)) for here, there in zip(library, server, strict=True)]
        return {
            f"{name}_library_ms": round(1000 * statistics.median(map(of, library)), 1),
            f"{name}_server_ms": round(1000 * statistics.median(map(of, server)), 1),
            f"{name}_added_ms": round(statistics.median(added), 1),
            f"{name}_added_quartiles_ms": [round(value, 1) for value in statistics.quantiles(added, n=4)[::2]],
        }

    record: dict[str, Any] = {"bundle": Path(asked.bundle).name, "rounds": asked.rounds, "steps": asked.steps}
    record |= in_ms("outside_networks", lambda timing: timing.whole - timing.networks)
    record |= in_ms("per_step", lambda timing: timing.loop / asked.steps)
    record |= in_ms("whole", lambda timing: timing.whole)
    record |= in_ms("first_step", lambda timing: timing.first_step)
    record["step_ms"] = round(1000 * statistics.median(timing.networks / asked.steps for timing in library), 1)
    write_record(asked.output, record, [f"{name}: {value}" for name, value in record.items()])


if __name__ == "__main__":
    main()
