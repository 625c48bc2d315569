"""What no module of tests leaves behind for the next one, whose tests another process may run."""

from __future__ import annotations

import pytest
import torch

from panolib.labels import LABEL_SETS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Each module begins with one thread: pytest has a process a core, and a fork of more may hang."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def label_sets_of_the_module():
    """Label sets that a module registers are gone after it."""
    before = dict(LABEL_SETS)
    yield
    LABEL_SETS.clear()
    LABEL_SETS.update(before)
