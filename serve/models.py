"""The bundles that a server offers, as requests are checked against them; what runs them is in the worker process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..kernels.ddim import SchedulerConfig
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import Manifest
from ..runtime.request.presets import PUBLISHED, Presets
from ..runtime.request.request import check_request
from ..runtime.request.settings import GenerationSettings, ResolvedSettings


class LoraUse(NamedTuple):
    """A LoRA as the operator named it, and its strength."""

    name: str
    strength: float


@dataclass(frozen=True)
class Model:
    """A bundle under the name that clients know it by."""

    name: str
    bundle: str
    """As the operator named it."""
    folder: Path
    """Of its files; with LoRAs, of a bundle that the server made."""
    digest: str
    """Of the bundle in that folder."""
    manifest: Manifest
    scheduler: SchedulerConfig
    created: int
    """When its manifest was written, in seconds since 1970."""
    presets: Presets
    """What each preset stands for here; ``consisti2v tune`` stores a bundle's own."""
    loras: tuple[LoraUse, ...] = ()
    """What was merged into the bundle's weights, in this order."""

    @classmethod
    def open(cls, bundle: str) -> Model:
        """Read a bundle's manifest and check it; weights are hashed by the worker, which loads them.

        Raises:
            UserError: as ``Bundle.open``.
        """
        opened = Bundle.open(bundle, verify=False)
        try:
            scheduler = SchedulerConfig.from_dict(opened.manifest.scheduler)
        except ValueError as error:
            raise UserError(f"the scheduler of bundle {bundle} cannot be used: {error}") from None
        folder = opened.path.resolve()
        name = bundle if Path(bundle).name == bundle and not Path(bundle).is_dir() else folder.name
        created = int((folder / "bundle.json").stat().st_mtime)
        return cls(name, bundle, folder, opened.digest, opened.manifest, scheduler, created, opened.presets)

    def resolve(
        self, prompt: str, settings: GenerationSettings, image: bytes = b""
    ) -> tuple[ResolvedSettings, list[str]]:
        """Settings with everything filled in, and what the model does not know of the request.

        Args:
            image: its header is read for ``fit="auto"``, and nothing of it otherwise.

        Raises:
            UserError: what the library would refuse, the photo left aside.
        """
        request = check_request(image, prompt, settings, self.manifest, self.scheduler, self.presets)
        return request.settings, list(request.notices.values())

    def shown(self) -> dict[str, Any]:
        """What ``/v1/capabilities`` says of it."""
        model, recommended = self.manifest.model, self.manifest.recommended
        defaults = asdict(self.resolve("", GenerationSettings(seed=0))[0])
        defaults["seed"] = None
        return {
            "id": self.name,
            "title": self.manifest.name,
            "height": model.height,
            "width": model.width,
            "sizes": [f"{width}x{height}" for height, width in model.sizes or ((model.height, model.width),)],
            "size_multiple": model.dynamic_size_multiple,
            "frames": model.frames,
            "trained": model.trained,
            "known_prompts": recommended.known_prompts,
            "camera_motions": recommended.camera_motions,
            "recommended": [name for name in PUBLISHED if getattr(recommended, name) is not None],
            "defaults": defaults,
            "loras": [use._asdict() for use in self.loras],
            "weights": self.digest,
            "presets": {name: dict(preset) for name, preset in self.presets.items()},
        }


def open_models(bundles: Sequence[str]) -> dict[str, Model]:
    """Every bundle by its name; the first one is what requests get that name none.

    Raises:
        UserError: a bundle that cannot be opened, or two of one name.
    """
    models: dict[str, Model] = {}
    for bundle in bundles:
        model = Model.open(bundle)
        if model.name in models:
            raise UserError(f"two bundles are called {model.name}: rename the folder of one of them.")
        models[model.name] = model
    return models
