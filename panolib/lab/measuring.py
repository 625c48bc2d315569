"""Seconds and megabytes of a call."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from panolib.lab import provenance

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a compiler without a GPU
from torch.utils.benchmark import Measurement, TaskSpec, Timer, set_torch_threads, timer  # noqa: E402

__all__ = [
    "Measurement", "Timer", "has_bf16", "measure_seconds", "measurement", "repeated", "set_torch_threads",
    "timer", "with_peak_memory",
]  # fmt: skip

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def measure_seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call, until a GPU has finished as well."""
    began = timer()  # torch's, which waits for the GPU
    function()
    return timer() - began


def repeated(function: Callable[[], Any], n: int) -> Measurement:
    """Times of exactly `n` calls; a Timer makes as many as its time allows."""
    return measurement([measure_seconds(function) for _ in range(n)])


def measurement(seconds: Sequence[float]) -> Measurement:
    """Times of single calls as torch's Measurement, for its median and `iqr`."""
    return Measurement(1, list(seconds), TaskSpec("one call", ""))


def with_peak_memory(function: Callable[[], Any], *, timed: bool = False) -> tuple[Any, float]:
    """Result, and how far memory rose above where it began, in MiB.

    Of the GPU's allocator if the call took any of it, else of the process; NaN where nobody tells. Ours, for
    torch's profiler does not see what NumPy and scikit-learn allocate, nor how much is held at once.

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
