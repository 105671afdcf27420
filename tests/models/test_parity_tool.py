"""`tools/parity.py` on its small model; the full one takes minutes and 8 GiB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_small_model_passes_and_reports_in_json():
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "tools/parity.py", "--size", "small", "--tokens", "8", "--seed", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"max_rel_logit_diff", "greedy_tokens_equal", "peak_gib"}
    assert found["max_rel_logit_diff"] < 1e-5
    assert found["greedy_tokens_equal"] is True
    assert 0 < found["peak_gib"] < 4
