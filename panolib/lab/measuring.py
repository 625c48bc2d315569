"""Seconds and megabytes of a call."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from panolib.lab import provenance

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Within the block, torch computes with `n` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call, until a GPU has finished as well."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def iqr(values: Sequence[float]) -> float:
    """Width of the middle half of the values."""
    low, high = np.percentile(values, (25, 75))
    return float(high - low)


def with_peak_memory(function: Callable[[], Any], *, timed: bool = False) -> tuple[Any, float]:
    """Result, and how far memory rose above where it began, in MiB.

    Of the GPU's allocator if the call took any of it, else of the process; NaN where nobody tells.

    `timed`: the function also measures time. Then freed memory stays with the process, as it does otherwise,
    and may be counted although it was free; to give it back would make the function slower.
    """
    cuda = torch.cuda.is_initialized()
    if cuda:
        torch.cuda.synchronize()
        allocated = torch.cuda.memory_allocated()
    with _allocator(returns_freed_memory=not timed):
        known = provenance.reset_peak_memory()
        before = provenance.process_memory("VmRSS")
        result = function()
        mib = max(0.0, provenance.process_memory("VmHWM") - before) if known else float("nan")
    if cuda:
        torch.cuda.synchronize()
        mib = (torch.cuda.max_memory_allocated() - allocated) / 2**20 or mib
    return result, mib


@contextlib.contextmanager
def _allocator(*, returns_freed_memory: bool) -> Iterator[None]:
    """What was freed goes back to the system; if wanted also, as it is freed, every block above 128 KiB.

    Without it glibc keeps blocks, the more of them the longer a process has run. Elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        if returns_freed_memory:
            libc.mallopt(MMAP_THRESHOLD, 2**17)
    except (OSError, AttributeError, TypeError):
        returns_freed_memory = False
    try:
        yield
    finally:
        if returns_freed_memory:  # the values that glibc itself comes to in a process with large arrays
            libc.mallopt(MMAP_THRESHOLD, 2**25)
            libc.mallopt(TRIM_THRESHOLD, 2**26)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; without them products are emulated, far slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
