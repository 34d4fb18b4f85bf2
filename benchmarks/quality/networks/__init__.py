"""Networks whose outputs the measures compare, loaded at first use and kept.

Access raises :class:`UnavailableError` where one cannot be had: a package or weights are missing, or do not fit.
"""

from __future__ import annotations

from functools import cached_property

from .amt import AmtInterpolator
from .cd_fvd import CdFvd
from .features import ClipNetwork, ImageNetwork, dino, lite0
from .flow import DisFlow, RaftFlow
from .sources import NetworkSources


class Networks:
    """The networks by what they are."""

    def __init__(self, sources: NetworkSources | None = None) -> None:
        self.sources = sources or NetworkSources()

    @cached_property
    def clip(self) -> ClipNetwork:
        return ClipNetwork(self.sources)

    @cached_property
    def dino(self) -> ImageNetwork:
        return dino(self.sources)

    @cached_property
    def lite0(self) -> ImageNetwork:
        return lite0(self.sources)

    @cached_property
    def raft(self) -> RaftFlow:
        return RaftFlow(self.sources)

    @cached_property
    def dis(self) -> DisFlow:
        return DisFlow()

    @cached_property
    def amt(self) -> AmtInterpolator:
        return AmtInterpolator(self.sources)

    @cached_property
    def fvd(self) -> CdFvd:
        return CdFvd(self.sources)
