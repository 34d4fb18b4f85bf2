"""Run the example workflow in a ComfyUI folder, headless on the CPU: ``python comfyui/run_workflow.py COMFYUI_FOLDER``.

Run it with the Python that runs ComfyUI, with this package's dependencies installed. The folder gets a link to this
repository in ``custom_nodes`` where there is none, and the example photo among its inputs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PORT = 8199
_START_SECONDS = 180
_RUN_SECONDS = 600


def main(folder: Path) -> None:
    """Start ComfyUI, run the workflow, print the files that it saved, and stop ComfyUI."""
    if not (folder / "main.py").is_file():
        raise SystemExit(f"{folder} is no ComfyUI folder: it holds no main.py.")
    link = folder / "custom_nodes" / "consisti2v-rt"
    if not link.exists():
        link.symlink_to(_ROOT, target_is_directory=True)
    (folder / "input").mkdir(exist_ok=True)
    shutil.copyfile(_ROOT / "assets" / "example.jpg", folder / "input" / "example.jpg")
    server = subprocess.Popen([sys.executable, "main.py", "--cpu", "--port", str(_PORT)], cwd=folder)
    try:
        _until(lambda: "ConsistI2VAnimate" in _get("/object_info"), _START_SECONDS, server)
        workflow = json.loads((_ROOT / "comfyui" / "example_workflow.json").read_text())
        for name, entry in _get("/object_info/ConsistI2VAnimate")["ConsistI2VAnimate"]["input"]["required"].items():
            if "default" in entry[1]:
                workflow["3"]["inputs"].setdefault(name, entry[1]["default"])
        number = _get("/prompt", {"prompt": workflow})["prompt_id"]
        _until(lambda: number in _get(f"/history/{number}"), _RUN_SECONDS, server)
        made = _get(f"/history/{number}")[number]
        if made["status"]["status_str"] != "success":
            raise SystemExit(json.dumps(made["status"], indent=2))
        for output in made["outputs"].values():
            for file in output.get("images", []):
                print(folder / "output" / file["subfolder"] / file["filename"])
    finally:
        server.terminate()
        server.wait()


def _get(path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{_PORT}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _until(is_so: Any, seconds: float, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"ComfyUI ended with exit code {server.returncode}.")
        try:
            if is_so():
                return
        except OSError:
            pass
        time.sleep(1)
    raise SystemExit(f"ComfyUI did not answer within {seconds:g} s.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give the folder of ComfyUI: python comfyui/run_workflow.py COMFYUI_FOLDER")
    main(Path(sys.argv[1]).resolve())
