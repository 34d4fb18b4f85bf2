"""The real driver layer, cuda.core included, over a driver that runs on this processor.

``driver_on_host/libcuda.cpp`` is compiled and put in the place of NVIDIA's libcuda, in a process of its own. There run
the tests that are for a GPU, on the kernels' own source, and those of this folder with the fixture ``gpu``: whole
videos, captures, cancelled calls. What no such driver can show is TensorRT and cuFFT, which bring device code.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.kernels.cuda.sources import SOURCES
from consisti2v_rt.runtime.gpu.device import probe
from consisti2v_rt.runtime.install import install_hint

pytestmark = pytest.mark.rare

HERE = Path(__file__).parent
TESTS = HERE.parent
KERNELS = ("guided_step", "frames_to_uint8", "frame_init_kernels", "noise_kernels")

SUITES = {
    "driver": (["-m", "gpu", str(HERE / "test_driver_calls.py")], 12),
    "loop": (["-m", "gpu", "-k", "loop_by_itself", str(HERE / "test_on_gpu.py")], 6),
    "kernels": (["-m", "gpu", *(str(TESTS / "kernels" / f"test_{name}.py") for name in KERNELS)], 90),
    "generation": (["-m", "not gpu", str(HERE)], 45),
}
"""Name -> what pytest runs, and the least number of tests that must pass."""


@pytest.fixture(scope="module")
def environment(kernels_on_host: Any, dynamic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process that finds this driver."""
    if probe().found:
        pytest.skip("this machine has a GPU and its own driver")
    if importlib.util.find_spec("cuda") is None:
        pytest.skip(f"needs cuda-core: {install_hint('kernels')}")
    from cuda.pathfinder import find_nvidia_header_directory

    headers = find_nvidia_header_directory("cudart")
    if headers is None or not (Path(headers) / "cuda.h").is_file():
        pytest.skip(f"needs cuda.h, of nvidia-cuda-runtime: {install_hint('kernels')}")
    folder = tmp_path_factory.mktemp("driver")
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{headers}"]
    command = ["g++", *flags, str(HERE / "driver_on_host" / "libcuda.cpp"), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder / "kernels").mkdir()
    for name in SOURCES:
        kernels_on_host.library(name)
        shutil.copy(kernels_on_host._folder / f"{name}.so", folder / "kernels")
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
        "DRIVER_ON_HOST_KERNELS": str(folder / "kernels"),
        "DYNAMIC_BUNDLE": str(dynamic_bundle),
    }


@pytest.mark.parametrize("suite", SUITES)
def test_on_the_driver_on_the_host(suite, environment):
    arguments, at_least = SUITES[suite]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment, cwd=TESTS.parent, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None and int(passed[1]) >= at_least and "skipped" not in summary, summary
