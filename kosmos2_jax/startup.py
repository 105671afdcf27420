"""What libraries must be told before they are imported, at the beginning of every command."""

from __future__ import annotations

import glob
import os

# As Google's drivers name their chips.
_TPUS = ("/dev/accel*", "/dev/vfio/*")
# Of a host with one chip. libtpu wants to know where it is even if it is only looking for chips,
# and complains of each that it has to guess.
_NO_TPU = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


def prepare_environment() -> None:
    """Keeps libtpu, where there is no TPU, and TensorFlow from chatting on stderr.

    Sets variables of the environment that are not set; to be called before JAX and TensorFlow are
    imported. TensorFlow 2.21 says three lines nevertheless, which heed no variable.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not any(glob.glob(pattern) for pattern in _TPUS):
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)
