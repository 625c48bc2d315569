"""Where a number comes from: peak memory of this process and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from panolib.lab import provenance
from panolib.profiles import project_root

IN_A_CHILD = """
import resource
import numpy as np
from panolib.lab import provenance

before = provenance.process_memory("VmRSS")
provenance.reset_peak_memory()
np.ones(15 * 2**17)  # 15 MiB, freed at once
peak = provenance.peak_memory_mb()
print(before, peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_a_child_does_not_report_the_memory_of_its_parent():
    held = np.ones(1024 * 2**17)  # 1 GiB; whatever a child imports is less
    environment = os.environ | {"PYTHONPATH": str(project_root())}
    child = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD], env=environment, text=True, capture_output=True, check=True
    )
    before, peak, inherited = map(float, child.stdout.split())
    assert inherited > held.nbytes / 2**20  # what the system says of the child includes the parent
    assert before + 10 < peak < before + 40


def test_a_peak_that_cannot_be_reset_counts_only_if_it_is_passed(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(provenance, "_used_gpu", lambda: False)
    reached = iter([500.0, 500.0, 500.0, 800.5])
    monkeypatch.setattr(provenance, "_process_peak", lambda: next(reached))
    for expected in (None, 800):
        assert not provenance.reset_peak_memory()
        assert provenance.peak_memory_mb() == expected


def test_an_unknown_peak_is_none(monkeypatch):
    monkeypatch.setattr(provenance, "_used_gpu", lambda: False)
    monkeypatch.setattr(provenance, "_process_peak", lambda: float("nan"))
    assert provenance.peak_memory_mb() is None
