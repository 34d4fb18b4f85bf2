"""An ONNX graph and its weights as bytes in memory, looked through before any library sees them.

Every library is given these bytes and no path, so none of them opens a file that the graph names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import UserError
from ..files.opened_file import Bytes, FileError, OpenedFile
from .inner_path import check_inner_path
from .onnx_walker import MAX_BYTES, GraphMetadata, read_metadata


class GraphSource:
    """A graph whose files are read through one function.

    Args:
        name: the graph's path in its bundle or folder, with slashes.
        read: path in the bundle or folder, and the most bytes allowed -> the bytes; raises :class:`UserError`.
        known: whether a path may be read: the manifest records it.
    """

    def __init__(
        self, name: str, read: Callable[[str, int | None], Bytes], known: Callable[[str], bool] = lambda name: True
    ) -> None:
        self.name = name
        self._read, self._known = read, known

    @classmethod
    def of(cls, graph: GraphSource | Path) -> GraphSource:
        """The graph itself, or the one in a file outside any bundle, whose weights lie beside it; nothing is hashed."""
        if isinstance(graph, GraphSource):
            return graph
        folder = graph.parent

        def read(name: str, limit: int | None) -> Bytes:
            try:
                return OpenedFile(folder, name).read(limit=limit)
            except FileError as fault:
                raise UserError(f"{folder / name} {fault}: write it again.") from None

        return cls(graph.name, read)

    def with_model(self, model: bytes) -> GraphSource:
        """Another graph, a serialised ``onnx.ModelProto``, over the same files of weights."""

        def read(name: str, limit: int | None) -> Bytes:
            return np.frombuffer(model, np.uint8) if name == self.name else self._read(name, limit)

        return GraphSource(self.name, read, self._known)

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.name).name

    @cached_property
    def model(self) -> bytes:
        """The serialised ``onnx.ModelProto``, without its weights."""
        return self._read(self.name, MAX_BYTES).tobytes()

    @cached_property
    def metadata(self) -> GraphMetadata:
        """What the graph takes, gives and refers to; every file that it refers to is known.

        Raises:
            UserError: it cannot be read, is no ONNX, uses operators of other domains, or refers to a file that is not
                recorded or not inside the bundle.
        """
        model = self.model
        try:
            metadata = read_metadata(model)
        except ValueError as error:
            raise self._refusal(str(error)) from None
        for location in metadata.locations:
            self._resolve(location)
        return metadata

    def weights(self) -> dict[str, Bytes]:
        """Contents of the files that the graph refers to, by the location as the graph spells it. Read anew at each
        call: whoever loads them decides how long they stay.
        """
        contents = {location: self._read(self._resolve(location), None) for location in self.metadata.locations}
        for tensor in self.metadata.external:
            if tensor.offset + tensor.nbytes > len(contents[tensor.location]):
                raise self._refusal(f"takes {tensor.name[:80]!r} from behind the end of {tensor.location!r}")
        return contents

    def _resolve(self, location: str) -> str:
        """Path of a file that the graph refers to."""
        try:
            check_inner_path(location)
        except UserError:
            raise self._refusal(f"refers to the file {location[:80]!r}, which is no file beside it") from None
        name = (PurePosixPath(self.name).parent / location).as_posix()
        if not self._known(name):
            raise self._refusal(f"refers to the file {name!r}, which the manifest does not record")
        return name

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"the runtime cannot load {self.file_name} ({reason}): do not use this bundle; export it again."
        )
