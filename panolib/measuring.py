"""Seconds and megabytes of a call."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from panolib import provenance

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


def with_peak_memory(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and how far memory rose above where it began, in MiB.

    Of the GPU's allocator once there is one, else of the process; NaN where the system does not tell.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    with _freed_memory_returned():
        if not provenance.reset_peak_memory():
            return function(), float("nan")
        before = provenance.process_memory("VmRSS")
        result = function()
        return result, max(0.0, provenance.process_memory("VmHWM") - before)


@contextlib.contextmanager
def _freed_memory_returned() -> Iterator[None]:
    """Blocks above 128 KiB go back to the system when they are freed, so that they are not counted twice.

    Without it glibc keeps them, the more of them the longer a process has run. Elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)  # what was freed before must not hide what is taken now
        libc.mallopt(MMAP_THRESHOLD, 2**17)
    except (OSError, AttributeError, TypeError):
        yield
        return
    try:
        yield
    finally:  # the values that glibc itself comes to in a process with large arrays
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; without them it is emulated, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
