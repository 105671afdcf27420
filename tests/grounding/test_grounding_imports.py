"""The room stays light: no JAX, no TensorFlow, and sentencepiece only when it is used."""

from __future__ import annotations

import subprocess
import sys


def test_importing_grounding_loads_nothing_heavy() -> None:
    program = (
        "import sys, kosmos2_jax.grounding, kosmos2_jax.grounding.prompts\n"
        "heavy = {'jax', 'tensorflow', 'torch', 'transformers', 'seqio', 'sentencepiece'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
