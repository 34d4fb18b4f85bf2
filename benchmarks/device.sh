#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, from a clean checkout: see benchmarks/device/__main__.py.
#   benchmarks/device.sh --wheels FOLDER --output device.json
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$root/.cache/device"
mkdir -p "$work"
# The root folder is the package, whatever it is called: a link gives Python the package's own name.
ln -sfn "$root" "$work/consisti2v_rt"
export PYTHONPATH="$work:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m consisti2v_rt.benchmarks.device --site "$work/site" --work "$work/run" --root "$root" "$@"
