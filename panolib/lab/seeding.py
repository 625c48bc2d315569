"""All randomness of a run from its seed, whatever the process computed before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import cv2
import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block the generators of Python, NumPy, torch and OpenCV begin at `seed`.

    Afterwards those of Python, NumPy and torch go on as before, so that a run whose training trains a parent
    first draws what it draws without that. OpenCV gives its state to nobody; nothing here reads it.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that libraries read
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        cv2.setRNGSeed(seed % 2**31)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
