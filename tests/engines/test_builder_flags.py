"""What the builder is told for every engine, asked of its own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from consisti2v_rt.export.engines.libraries import find_engine_backend, load_library
from consisti2v_rt.export.engines.plan import Messages, PlanRequest, _configure, make_logger
from consisti2v_rt.export.engines.shapes import EngineShapes
from consisti2v_rt.export.engines.targets import find_target
from consisti2v_rt.runtime.gpu.device import probe

pytest.importorskip("tensorrt_rtx")


def test_float32_is_float32_and_nothing_is_allocated_in_a_step():
    backend, target = find_engine_backend("tensorrt-rtx"), find_target("sm89", probe())
    library = load_library(backend)
    builder = library.Builder(make_logger(library, Messages()))
    request = PlanRequest("unet", Path("unet.onnx"), EngineShapes((), (), ()), backend, target)
    config = _configure(library, builder, request)
    flags = library.BuilderFlag
    assert builder.create_builder_config().get_flag(flags.TF32), "on by itself: clearing it would be idle otherwise"
    assert not config.get_flag(flags.TF32)
    assert config.get_flag(flags.REQUIRE_USER_ALLOCATION) and not config.get_flag(flags.STRIP_PLAN)
