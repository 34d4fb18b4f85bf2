"""What versions before 0.2 named otherwise is read for one more release: options, engines of bundles, records."""

from __future__ import annotations

import json

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.bench.record import read_record
from consisti2v_rt.runtime.bundle.bundle import MANIFEST_NAME
from consisti2v_rt.runtime.bundle.manifest import Manifest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("build", "BUNDLE", "--target", "sm89", "--flavour", "onnx"), "backend 'onnx' is unknown"),
        (("serve", "--max-photo-pixels", "1"), "--max-image-pixels"),
        (("bench", "quality", "BUNDLE", "--photos", "missing.csv"), "missing.csv"),
    ],
)
def test_options(consisti2v, demo_bundle, words, message):
    outcome = consisti2v(*(demo_bundle if word == "BUNDLE" else word for word in words))
    assert outcome.code == 2 and message in outcome.stderr.replace("\n", " "), outcome.stderr
    command = [word for word in words if word in ("build", "serve", "bench", "quality")]
    former = next(word for word in words if word.startswith("--") and word != "--target")
    assert former not in consisti2v(*command, "--help").stdout


def test_engines_of_bundles(demo_bundle):
    data = json.loads((demo_bundle / MANIFEST_NAME).read_text())
    engine = {"stage": "unet", "file": "engines/a", "target": "sm89", "version": "1.7", "precision": "fp16"}
    engine |= {"compute_capabilities": ["8.9"], "onnx_sha256": "0" * 64}
    for name in ("engines/a", "engines/a.json"):
        data["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    read = [
        Manifest.from_json(json.dumps(data | {"engines": [engine | names]})).engines
        for names in (
            {"backend": "tensorrt-rtx", "metadata": "engines/a.json"},
            {"flavour": "tensorrt-rtx", "facts": "engines/a.json"},
        )
    ]
    assert read[0] == read[1] and read[0][0].backend == "tensorrt-rtx"


def test_records(tmp_path, make_record):
    record = make_record("latency")
    data = json.loads(record.to_json())
    data["subjects"] = [
        {"facts" if name == "metadata" else name: value for name, value in target.items()}
        for target in data.pop("targets")
    ]
    (tmp_path / "record.json").write_text(json.dumps(data))
    assert read_record(tmp_path / "record.json") == record


@pytest.mark.parametrize("engines", [7, "engines", {"flavour": "x"}, [7], None])
def test_engines_of_another_kind_are_refused(demo_bundle, engines):
    data = json.loads((demo_bundle / MANIFEST_NAME).read_text())
    with pytest.raises(UserError, match="engines"):
        Manifest.from_json(json.dumps(data | {"engines": engines}))
