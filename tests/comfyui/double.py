"""What the nodes use of ComfyUI's API, written from its documentation: schema classes that keep what they are told,
progress, interrupt and memory.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass
class Port:
    """An input or output of a node."""

    io_type: str
    id: str = ""
    options: Any = None
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def default(self) -> Any:
        return self.named.get("default")


def kind(io_type: str) -> Any:
    """A type with its Input and Output."""

    def make_input(id: str, options: Any = None, **named: Any) -> Port:
        unknown = named.keys() - {
            "default", "min", "max", "step", "tooltip", "multiline", "optional", "control_after_generate"
        }  # fmt: skip
        assert not unknown, unknown
        if io_type == "COMBO":
            assert named.get("default", options[0]) in options, (id, options)
        if io_type in ("INT", "FLOAT"):
            assert named["min"] <= named["default"] <= named["max"], (id, named)
        return Port(io_type, id, options, named)

    def make_output(id: str = "", display_name: str = "") -> Port:
        return Port(io_type, id or display_name)

    return types.SimpleNamespace(io_type=io_type, Input=make_input, Output=make_output)


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Port]
    outputs: list[Port]


class ComfyNode:
    pass


class ComfyExtension:
    pass


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


@dataclass
class VideoComponents:
    images: Any
    frame_rate: Fraction


@dataclass
class VideoFromComponents:
    components: VideoComponents


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI calls it that
    pass


class ComfyUI:
    """The state of a running ComfyUI, and its modules by name."""

    def __init__(self) -> None:
        self.interrupted = False
        self.free_bytes = 1 << 40
        self.progress: list[tuple[int, int, Any]] = []

    def interrupt_check(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def modules(self) -> dict[str, types.ModuleType]:
        state = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                state.progress.append((value, self.total, preview))

        names = ("comfy", "comfy.model_management", "comfy.utils", "comfy_api", "comfy_api.latest")
        made = {name: types.ModuleType(name) for name in names}
        management: Any = made["comfy.model_management"]
        management.free_memory = lambda required, device, keep_loaded=(): []
        management.get_free_memory = lambda device: self.free_bytes
        management.processing_interrupted = lambda: self.interrupted
        management.throw_exception_if_processing_interrupted = self.interrupt_check
        vars(made["comfy.utils"])["ProgressBar"] = ProgressBar
        vars(made["comfy"])["model_management"] = management
        io = types.SimpleNamespace(
            ComfyNode=ComfyNode, Schema=Schema, NodeOutput=NodeOutput, Custom=kind, Image=kind("IMAGE"),
            Video=kind("VIDEO"), Combo=kind("COMBO"), Int=kind("INT"), Float=kind("FLOAT"), String=kind("STRING"),
            Boolean=kind("BOOLEAN"),
        )  # fmt: skip
        vars(made["comfy_api.latest"]).update(
            io=io,
            ComfyExtension=ComfyExtension,
            InputImpl=types.SimpleNamespace(VideoFromComponents=VideoFromComponents),
            Types=types.SimpleNamespace(VideoComponents=VideoComponents),
        )
        return made
