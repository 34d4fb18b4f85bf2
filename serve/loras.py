"""LoRAs of a server, and bundles that were replaced on disk: other weights without a restart.

Clients name LoRAs, the operator says which files those are. A set of them is merged by ``consisti2v lora`` into a
bundle of the server's own, always from the weights without any, and every worker goes over to it between two jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError, shown
from ..runtime.bundle.bundle import Bundle, hash_files
from ..runtime.bundle.manifest import graphs_sha256
from ..runtime.child_process import neutral_place
from .logs import Log
from .models import LoraUse, Model
from .options import ServerOptions
from .store import JobStore
from .workers import Workers

_NAME = re.compile(r"[0-9a-f]{32}")
_FIELDS = ("lora_nickname", "lora_path", "target", "strength", "model")


class Loras:
    """What each model's weights are: the bundle's own, or those with LoRAs merged."""

    def __init__(self, options: ServerOptions, store: JobStore, workers: Workers, log: Log) -> None:
        self._options, self._store, self._workers, self._log = options, store, workers, log
        self._bases = dict(workers.models)
        self._files = dict(options.loras)
        self._folder = options.data / "loras"
        self._turn = asyncio.Lock()

    async def restore(self) -> None:
        """Take up the LoRAs that an earlier server had.

        Raises:
            UserError: they cannot be merged any more.
        """
        async with self._turn:
            if self._folder.is_dir():
                for left in self._folder.iterdir():  # of a merge that was ended
                    if left.is_dir() and not _NAME.fullmatch(left.name):
                        shutil.rmtree(left, ignore_errors=True)
            for name, active in self._store.loras().items():
                base, uses = self._bases.get(name), tuple(LoraUse(*use) for use in active)
                if base is None:
                    continue
                if any(use.name not in self._files for use in uses):
                    names = ", ".join(use.name for use in uses)
                    self._log.warning("LoRAs are not named any more: the model runs without", model=name, loras=names)
                    self._store.set_loras(name, [])
                    continue
                self._workers.models[name] = await self._merged(base, uses)

    async def set(self, name: str, uses: Sequence[LoraUse] | None = None) -> None:
        """Have a model run with these LoRAs and no others; with none it runs its bundle's own weights, bit for bit.

        The bundle is read again, because it may have been replaced. This returns when every worker is warm with the
        weights; jobs under way end on those before, which stay on a failure.

        Args:
            name: of the model.
            uses: None: those that it has.

        Raises:
            UserError: the weights cannot be merged, loaded or run, or the bundle is of another model now.
            StoppingError: the server ends.
        """
        async with self._turn:
            old, present = self._bases[name], self._workers.models[name]
            try:
                base = replace(await asyncio.to_thread(Model.open, old.bundle), name=name)
                if (old.manifest.model, old.scheduler) != (base.manifest.model, base.scheduler):
                    raise UserError(f"the bundle of {name} is of another model or size now: start the server again.")
                model = await self._merged(base, present.loras if uses is None else tuple(uses))
                started = time.perf_counter()
                if model != present:
                    await self._workers.use(model)
            except UserError as error:
                raise UserError(self._without_paths(str(error))) from None
            seconds = time.perf_counter() - started
            loras = ", ".join(f"{use.name} x {use.strength:g}" for use in model.loras) or None
            self._log.info("weights", model=name, loras=loras, digest=model.digest, seconds=seconds)
            self._bases[name] = base
            self._store.set_loras(name, model.loras)

    async def _merged(self, base: Model, uses: tuple[LoraUse, ...]) -> Model:
        """A model with LoRAs merged; the bundle is made once for equal files and strengths."""
        if not uses:
            return base
        if base.manifest.lora is not None:
            raise UserError(f"{base.name} holds LoRAs already: serve the bundle that it was made from.")
        files = [self._files[use.name] for use in uses]
        try:
            hashes = await asyncio.to_thread(lambda: [hash_files(f.parent, [f.name])[f.name].sha256 for f in files])
        except OSError as error:
            raise UserError(f"the file of a LoRA cannot be read ({error.strerror}).") from None
        key = json.dumps([base.digest, [[hash_, use.strength] for hash_, use in zip(hashes, uses, strict=True)]])
        folder = self._folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        try:
            bundle = await asyncio.to_thread(Bundle.open, folder, verify=self._options.verify)
        except UserError:
            await self._merge(base, uses, folder)
            bundle = await asyncio.to_thread(Bundle.open, folder, verify=False)
            made = bundle.manifest.lora
            if made is None or (made.base_sha256, [file.sha256 for file in made.files]) != (
                graphs_sha256(base.manifest),
                hashes,
            ):
                shutil.rmtree(folder, ignore_errors=True)
                raise UserError(f"{base.name} or the file of a LoRA was replaced meanwhile: try again.") from None
        with suppress(OSError):
            os.utime(folder)  # the last time that it was wanted
        return replace(base, folder=folder, digest=bundle.digest, loras=uses)

    async def _merge(self, base: Model, uses: Sequence[LoraUse], folder: Path) -> None:
        """In a process of its own, because a bundle's weights may fill the memory."""
        self._folder.mkdir(exist_ok=True)
        texts = [f"{self._files[use.name]}:{use.strength!r}" for use in uses]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "consisti2v_rt", "lora", str(base.folder), *texts, "-o", str(folder), "--force"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            **neutral_place(),
        )
        try:
            _, said = await process.communicate()
        finally:
            if process.returncode is None:  # the server ends
                process.kill()
        lines = said.decode(errors="replace").splitlines()
        for line in lines:
            if line.startswith("note: "):
                self._log.warning("merged", model=base.name, said=line.removeprefix("note: "))
        if process.returncode:
            message = [line for line in lines if line.startswith("error: ")] or lines[-1:]
            raise UserError("".join(message).removeprefix("error: ") or "the merge was ended: try again.")

    def _without_paths(self, text: str) -> str:
        """No sentence shows a client where the server keeps its files."""
        names = {str(file): name for name, file in self._files.items()} | {f"{self._folder}{os.sep}": ""}
        names |= {place: base.name for base in self._bases.values() for place in (str(base.folder), base.bundle)}
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        return text

    def tidy(self) -> None:
        """Delete merged bundles that no model has, when they are old or take too much: as jobs, but counted alone."""
        if self._turn.locked() or not self._folder.is_dir():
            return
        used = {model.folder for model in self._workers.models.values()}
        try:
            idle = [folder for folder in self._folder.iterdir() if _NAME.fullmatch(folder.name) and folder not in used]
            ages = sorted((folder.stat().st_mtime, folder) for folder in idle)
            sizes = {folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in idle}
        except OSError:  # one went meanwhile
            return
        total = sum(sizes.values())
        for wanted, folder in ages:
            if wanted >= time.time() - self._options.keep_seconds and total <= self._options.keep_bytes:
                break
            total -= sizes[folder]
            shutil.rmtree(folder, ignore_errors=True)

    # -- what clients say and see ----------------------------------------------------------------------------------

    def shown(self, name: str) -> dict[str, Any]:
        """The answer of the LoRA routes."""
        model = self._workers.at_present(name)
        active = [
            {"nickname": lora, "path": lora, "merged": True, "strength": strength} for lora, strength in model.loras
        ]
        return {
            "model": name,
            "loaded_adapters": [{"nickname": known, "path": known} for known in self._files],
            "active": {"transformer": active},
            "weights": model.digest,
        }

    def read_uses(self, given: Mapping[str, Any]) -> list[LoraUse]:
        """The LoRAs that a body of ``/v1/set_lora`` asks for.

        Raises:
            UserError: a field that is unknown or not possible, or a LoRA that the operator has not named.
        """
        check_fields(given, _FIELDS)
        known = ", ".join(self._files) or "none; start the server with --lora NAME=FILE"
        names = given.get("lora_nickname") or []
        names = names if isinstance(names, list) else [names]
        if not names:
            raise UserError(f"lora_nickname is missing: give a name, or several. Known: {known}.")
        for name in names:
            if not isinstance(name, str) or name not in self._files:
                raise UserError(f"LoRA {shown(name)} is unknown: the operator names the files. Known: {known}.")
            if names.count(name) > 1:
                raise UserError(f"LoRA {name} is named twice: give it once, with the sum of its strengths.")
        for path, name in zip(_each(given, "lora_path", names), names, strict=True):
            if path not in (None, name):
                raise UserError("lora_path is not possible: the operator names the files. Leave it out.")
        for target in _each(given, "target", names):
            if target not in (None, "all"):
                raise UserError(f"target {shown(target)} is not possible: a file is merged whole. Give all.")
        strengths = [1.0 if one is None else one for one in _each(given, "strength", names)]
        for strength in strengths:
            if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= 1000:
                raise UserError(f"strength {shown(strength)} is not possible: give a number from -1000 to 1000.")
        return [LoraUse(name, float(strength)) for name, strength in zip(names, strengths, strict=True)]


def check_fields(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse what a body of these routes does not have."""
    for name in given:
        if name not in known:
            raise UserError(f"field {shown(name)} is unknown: known are {', '.join(known)}.")


def _each(given: Mapping[str, Any], field: str, names: Sequence[Any]) -> list[Any]:
    """A field's value for each LoRA: a list has as many, a single one is for all."""
    value = given.get(field)
    if not isinstance(value, list):
        return [value] * len(names)
    if len(value) != len(names):
        raise UserError(f"{field} has {len(value)} entries for {len(names)} LoRAs: give one for each, or one for all.")
    return value
