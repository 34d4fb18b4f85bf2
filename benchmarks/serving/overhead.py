"""``python -m consisti2v_rt.benchmarks.serving.overhead``: what the server adds to a video, beside the library.

In turns, the library makes a video and writes its mp4, and an idle server is asked for the same video, until its last
event. Both have the same number of threads; medians are compared. Where other work shares the processor, the two may
get unequal shares of it: then the time that a request takes beside the stages of its worker is the better figure.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from ...runtime.commands.console import PlainParser
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import StepProgress
from .running import PHOTO, events_of, serving, write_record


def main() -> None:
    """Measure and write the record."""
    parser = PlainParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("serving_overhead.json"))
    asked = parser.parse_args()
    fields = {"prompt": "zoom in", "num_inference_steps": str(asked.steps), "seed": "1", "guidance_scale": "1"}
    library: list[tuple[float, float]] = []
    server: list[tuple[float, float]] = []
    outside: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ImageToVideo.from_bundle(asked.bundle, threads=1) as model:
        data = PHOTO.read_bytes()

        def in_library() -> tuple[float, float]:
            first: list[float] = []
            started = time.perf_counter()

            def on_step(progress: StepProgress) -> None:
                first.append(time.perf_counter() - started)

            videos = model(
                data, "zoom in", seed=1, guidance_scale=1.0, num_inference_steps=asked.steps, callback=on_step
            )
            videos.save(Path(folder) / "library.mp4")
            return first[0], time.perf_counter() - started

        options = ("--threads", "1", "--device", "cpu")
        with serving(Path(folder), asked.bundle, *options) as running, running.client() as client:

            def on_server() -> tuple[float, float]:
                first = 0.0
                started = time.perf_counter()
                video = client.post("/v1/videos", data=fields, files={"input_reference": data}).json()
                for _, name, told in events_of(client, video["id"]):
                    if name == "step" and not first:
                        first = time.perf_counter() - started
                    if name == "completed":
                        outside.append(1000 * (time.perf_counter() - started - sum(told["timings"].values())))
                        return first, time.perf_counter() - started
                raise RuntimeError("the video was not completed")

            in_library()
            on_server()
            for _ in range(asked.rounds):
                library.append(in_library())
                server.append(on_server())
    added = [
        [1000 * (there[part] - here[part]) for here, there in zip(library, server, strict=True)] for part in (0, 1)
    ]
    record = {
        "bundle": Path(asked.bundle).name,
        "rounds": asked.rounds,
        "steps": asked.steps,
        "median_library_ms": round(1000 * statistics.median(whole for _, whole in library), 1),
        "median_server_ms": round(1000 * statistics.median(whole for _, whole in server), 1),
        "median_beside_the_stages_ms": round(statistics.median(outside[1:]), 1),
        "median_added_ms": round(statistics.median(added[1]), 1),
        "median_added_to_first_step_ms": round(statistics.median(added[0]), 1),
        "median_request_to_first_step_ms": round(1000 * statistics.median(first for first, _ in server), 1),
    }
    write_record(asked.output, record, [f"{name}: {value}" for name, value in record.items()])


if __name__ == "__main__":
    main()
