"""The benchmark of the OpenVINO session's rewrites: its parts are those that the rewrites are made for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from consisti2v_rt.benchmarks.rewrites_on_processor import PARTS, Part, convolution, measure_part
from consisti2v_rt.runtime.openvino.spatial_winograd import use_spatial_winograd

pytest.importorskip("openvino")


@pytest.mark.parametrize("part", ["3x3", "along the frames", "upsampling", "GEGLU", "rotary"])
def test_the_smallest_of_each_kind_is_rewritten(part):
    case = min((case for case in PARTS if part in case.name), key=lambda case: "1280" in case.name)
    assert case.rewrite(case.model()) == 1


def test_a_part_is_timed_and_compared():
    found = measure_part(Part("small", (4, 64, 16, 16), convolution, use_spatial_winograd), 3)
    assert found["rewritten"] == 1 and len(found["direct_ms"]) == len(found["rewritten_ms"]) == 3
    assert 0 < found["relative_l2"] < 1e-5 and found["speed_up"] > 0


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    place = tmp_path / "none" / "record.json"
    place.parent.write_text("a file")
    command = [sys.executable, "-m", "consisti2v_rt.benchmarks.rewrites_on_processor", "--output", str(place)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 2 and outcome.stderr.startswith("error: ") and "Traceback" not in outcome.stderr


def test_the_committed_record_is_one_of_all_parts(request):
    record = json.loads((request.config.rootpath / "benchmarks" / "results" / "rewrites_cpu.json").read_text())
    assert [row["part"] for row in record["parts"]] == [part.name for part in PARTS]
    assert all(row["rewritten"] == 1 and row["relative_l2"] < 2e-5 for row in record["parts"])
