"""A process that has everything imported and forks for every command, so that one that dies or hangs is one answer.

``python -m consisti2v_rt.tests.fuzz.server [torch]``: one JSON object a line in and out.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT = 15.0
"""Seconds of a command. A process that waits for the processor, on a busy machine, gets up to:"""
PATIENCE = 90.0
_MORE_MEMORY = 4 * 2**30
_LARGEST_FILE = 2**30
_MODULES = ("onnxruntime", "tokenizers", "av", "PIL.Image", "cv2", "openvino", "psutil", "numpy", "rich.progress")
# The first import of matplotlib's fonts looks for them, and keeps what it found in the user's folder.
_MODULES += ("matplotlib.font_manager", "matplotlib.backends.backend_agg", "matplotlib.figure")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ON_PATHS = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1} | {
    "os.link": 2,
    "os.symlink": 2,
    "os.utime": 1,
    "os.chown": 1,
}
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.bind")
_NEVER += ("socket.getaddrinfo", "pickle.find_class")


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    modules = [*_MODULES, *(["torch", "diffusers", "transformers"] if "torch" in sys.argv[1:] else [])]
    for name in (
        *modules,
        "consisti2v_rt.cli",
        *(["consisti2v_rt.export.bundle_writer"] if "torch" in modules else []),
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one command in a fork.

    Args:
        job: ``arguments`` of the command line; ``watched``, the folder whose files must stay as they are; in it
            ``box``, which holds ``home``, ``tmp`` and ``cwd``; in that ``out``, which the command may write to;
            ``capture``, a folder for what it prints; ``stubs``, functions that are replaced by one that returns its
            second argument, as "module:name".

    Returns:
        ``code`` (negative: a signal), ``stdout``, ``stderr``, ``hung``, ``seconds``, ``peak_bytes``, and ``outside``:
        what it did or left outside of ``out``, one sentence each.
    """
    box, watched, capture = Path(job["box"]), Path(job["watched"]), Path(job["capture"])
    before = _state(watched)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(job, box, capture)
    status, usage, hung = _await(child, started)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    deeds = (capture / "deeds").read_text(encoding="utf-8", errors="replace").splitlines()
    after = _state(watched)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    out = Path(job["out"]).relative_to(watched).as_posix()
    deeds += [f"changed: {name}" for name in changed if name != out and not name.startswith(f"{out}/")]
    return {
        "code": code,
        "stdout": (capture / "stdout").read_text(encoding="utf-8", errors="replace"),
        "stderr": (capture / "stderr").read_text(encoding="utf-8", errors="replace"),
        "hung": hung,
        "seconds": time.monotonic() - started,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "outside": list(dict.fromkeys(deeds)),
    }


def _state(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file and folder below: kind and rights, size, time of the last change; of folders no time."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            metadata = path.lstat()
            own = (
                (metadata.st_mode,)
                if stat.S_ISDIR(metadata.st_mode)
                else (metadata.st_mode, metadata.st_size, metadata.st_mtime_ns)
            )
            found[path.relative_to(root).as_posix()] = own
    return found


def _await(child: int, started: float) -> tuple[int, Any, bool]:
    """The end of a child: its status, what it used, and whether it had to be ended."""
    hung = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, hung
        past = time.monotonic() - started
        if not hung and past > LIMIT and (past > PATIENCE or _worked(child) > LIMIT or _sleeps(child)):
            os.killpg(child, signal.SIGKILL)
            hung = True
        time.sleep(0.005)


def _stat_fields(child: int) -> list[str]:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _worked(child: int) -> float:
    """Processor seconds; where they are not told, more than enough."""
    fields = _stat_fields(child)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else PATIENCE


def _sleeps(child: int) -> bool:
    """Whether it waits for something else than the processor, and hardly ran at all."""
    fields = _stat_fields(child)
    return bool(fields) and fields[0] in "SD" and _worked(child) < LIMIT / 5


def _become(job: Mapping[str, Any], box: Path, capture: Path) -> None:
    """In the fork: the command, from its surroundings to its exit code. Does not return."""
    code = 70
    try:
        os.setpgid(0, 0)
        _surround(job, box, capture)
        code = _command(job)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 71
        os._exit(code)


def _surround(job: Mapping[str, Any], box: Path, capture: Path) -> None:
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(capture / "stdout"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, str(capture / "stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    deeds = os.open(capture / "deeds", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    home, temporary = str(box / "home"), str(box / "tmp")
    os.environ |= {"HOME": home, "TMPDIR": temporary, "COLUMNS": "200", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"XDG_CACHE_HOME": f"{home}/cache", "XDG_DATA_HOME": f"{home}/data", "OMP_NUM_THREADS": "1"}
    tempfile.tempdir = None
    # A module that is first imported here is no deed of the command.
    sys.dont_write_bytecode = True
    os.chdir(box / "cwd")
    address_space = _own_address_space() + _MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Written at once, not at the end: a signal may end the process anywhere.
    sys.addaudithook(_watch(deeds, [os.path.realpath(job["out"]), os.path.realpath(temporary)]))


def _own_address_space() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**34


def _watch(deeds: int, allowed: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that writes down what no command may do."""

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        # The folder's links count, the last name's do not.
        named = Path(os.fsdecode(path)).absolute()
        place = str(named.parent.resolve() / named.name)
        return place != os.devnull and not any(f"{place}/".startswith(f"{root}/") for root in allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & _WRITES or (isinstance(mode, str) and set(mode) & set("wax+"))
            if not writes or not outside(path):
                return
        elif event in _ON_PATHS:
            if not any(outside(path) for path in arguments[: _ON_PATHS[event]]):
                return
        elif event not in _NEVER:
            return
        os.write(deeds, f"{event}: {arguments!r}"[:500].encode("utf-8", "backslashreplace") + b"\n")

    return hook


def _command(job: Mapping[str, Any]) -> int:
    from consisti2v_rt import entry

    for stub in job["stubs"]:
        module, _, name = stub.partition(":")
        setattr(importlib.import_module(module), name, lambda first, second, *rest, **options: second)
    sys.argv = ["consisti2v", *job["arguments"]]
    try:
        entry.main()
    except SystemExit as leaving:
        code = leaving.code
        return code if isinstance(code, int) else 0 if code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
