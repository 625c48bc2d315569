"""Where runs are trained: this process, processes of this machine, its GPUs, SLURM jobs, a Dask scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from panolib.config import Count, Natural, from_mapping, spec
from panolib.data.processes import GUARD
from panolib.errors import UserError
from panolib.profiles import load_yaml

# dask and distributed take a second to import, which one process does without: see `connect`

# Set before a worker starts: importing numpy, OpenCV or torch there reads them once.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
OPTIONS = {
    "distributed.scheduler.allowed-failures": 1,  # a run whose worker died is tried again once
    "distributed.scheduler.worker-saturation": 1.0,  # no run waits at a worker that has one
    "distributed.scheduler.worker-ttl": None,  # long work in one C function is no reason to give a worker up
    "distributed.worker.daemon": False,  # loaders of images may have processes of their own
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,  # Dask's also has malloc give memory back: slow here
}

PATIENCE = "10s"  # until a scheduler answers

# What all clusters of this machine have in common: they are seen from here only, and say little.
OF_THIS_MACHINE = {
    "threads_per_worker": 1,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
    "memory_limit": None,  # a process that needs much is the user's to judge
    "silence_logs": logging.CRITICAL,
}


class ClusterError(UserError):
    """Workers cannot be had, or cannot be reached any more. The message says which and why."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Where runs are trained, and how many at a time."""

    n: int = 1  # processes of this machine, or SLURM jobs; one on this machine is this process itself
    cluster: str = "local"  # or "slurm" (needs `settings`), "cuda" (a worker for each GPU, whatever `n`)
    settings: Path | None = None  # YAML file that describes a `SlurmJob`
    scheduler: str = ""  # address of a Dask scheduler that runs, such as tcp://10.0.0.5:8786

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"workers: expected 1 or more, found {self.n}")

    @property
    def in_process(self) -> bool:
        """Whether runs are trained in this process, one after the other."""
        return self.n == 1 and self.cluster == "local" and not self.scheduler


def _written(pattern: str, expected: str) -> AfterValidator:
    """A text of this pattern; another is told what was expected."""

    def check(value: str | int) -> str | int:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise PydanticCustomError("written", f"Input should be {expected}")
        return value

    return AfterValidator(check)


@spec(kw_only=True)
class SlurmJob:
    """One worker as a SLURM job; the options of sbatch.

    `cores` are the CPU cores of one run, `interface` is the network that all nodes share, `setup` are lines
    of shell before the worker starts (modules to load), `options` are further options of sbatch.
    """

    queue: str
    # a number is seconds: to YAML, 12:00:00 is one
    walltime: Annotated[str | Count, _written(r"(\d+-)?\d+:\d\d:\d\d", "[days-]hours:minutes:seconds")]
    memory: Annotated[str, _written(r"\d+ ?[MG]i?B", "a size such as 16GB")] = "8GB"
    cores: Count = 1
    gpus: Natural = 0
    account: str | None = None
    interface: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def seconds(self) -> int:
        """The wall time in seconds."""
        if isinstance(self.walltime, int):
            return self.walltime
        days, _, clock = self.walltime.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds

    @property
    def time(self) -> str:
        """The wall time as sbatch reads it, days-hours:minutes:seconds."""
        return f"{self.seconds // 86400}-{time.strftime('%H:%M:%S', time.gmtime(self.seconds))}"


@contextlib.contextmanager
def connect(workers: Workers, n_runs: int, logs: Path) -> Iterator[tuple]:
    """A client of what `workers` says. What was started for it ends with the block, however that ends.

    At most `n_runs` workers are started; `logs` is the folder for the output of SLURM jobs. Yields the
    distributed.Client, and the lock file of the terminal for workers that share it, else None. Raises
    ClusterError if workers cannot be had, and ProfileError for a settings file that describes no `SlurmJob`.
    """
    import dask
    from distributed import Client
    from distributed.gc import disable_gc_diagnosis

    n, environment = min(workers.n, n_runs), dict(os.environ)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="panolib-")))
        stack.enter_context(dask.config.set(OPTIONS | {"temporary-directory": str(scratch)}))
        stack.callback(lambda: (os.environ.clear(), os.environ.update(environment)))  # nannies change it
        try:
            if workers.scheduler:
                where, terminal = workers.scheduler, None
            elif workers.cluster == "slurm":
                where, terminal = stack.enter_context(_slurm(workers, n, logs)), None
            else:
                start = _gpus if workers.cluster == "cuda" else _processes
                where, terminal = stack.enter_context(start(n)), scratch / "terminal.lock"
            client = stack.enter_context(Client(where, set_as_default=False, timeout=PATIENCE))
            disable_gc_diagnosis(force=True)  # a Ctrl-C that falls into a callback of the collector is lost
        except (OSError, ValueError) as error:
            if not workers.scheduler:
                raise
            raise ClusterError(
                f"--scheduler {workers.scheduler}: expected the address of a Dask scheduler that runs, "
                f"such as tcp://host:8786 ({error})"
            ) from error
        except RuntimeError as error:
            raise ClusterError(
                f"{workers.cluster} workers: they could not be started; {GUARD}, or there was not enough "
                f"memory ({error})"
            ) from error
        yield client, terminal


def _processes(n: int):
    """Processes of this machine, of one thread each."""
    from distributed import LocalCluster

    os.environ.update(ONE_THREAD)  # also where the user's environment says otherwise
    return LocalCluster(n, **OF_THIS_MACHINE)


def _gpus(_: int):
    """A process for each GPU of this machine that is visible."""
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise ClusterError(
            "--cluster cuda needs the package dask-cuda: pip install 'panolib[cuda]' (Linux, NVIDIA)"
        ) from error
    return LocalCUDACluster(**OF_THIS_MACHINE)


def _slurm(workers: Workers, n: int, logs: Path):
    """n SLURM jobs of one worker each; one that ends for its wall time is followed by another."""
    cluster = slurm_cluster(read_slurm_job(workers.settings), logs)
    cluster.adapt(minimum=n, maximum=n)
    return cluster


def read_slurm_job(file: Path | None) -> SlurmJob:
    """The settings in a YAML file. Raises ProfileError naming file, key and value, or FileNotFoundError."""
    if file is None:
        raise ClusterError("--cluster slurm: expected --cluster-settings FILE, a YAML file with queue, "
                           "walltime, cores, gpus, memory")  # fmt: skip
    return from_mapping(SlurmJob, load_yaml(file), where=file)


def slurm_cluster(job: SlurmJob, logs: Path):
    """A dask_jobqueue.SLURMCluster that submits such jobs; none yet."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ClusterError(
            "--cluster slurm needs the package dask-jobqueue: pip install 'panolib[cluster]'"
        ) from error
    logs.mkdir(parents=True, exist_ok=True)
    threads = [f"export {name}={job.cores}" for name in ONE_THREAD]
    # a worker that leaves in time gives its run back, which is then not counted as a death
    lifetime = max(job.seconds - 120, job.seconds // 2)
    return SLURMCluster(
        queue=job.queue, account=job.account, walltime=job.time, interface=job.interface,
        cores=1, processes=1, job_cpu=job.cores, memory=job.memory,  # one run at a time
        nanny=False,  # the job is the worker, and another job follows it
        job_name="panolib", log_directory=str(logs), python=sys.executable,
        job_script_prologue=[*threads, *job.setup],
        job_extra_directives=[*([f"--gpus={job.gpus}"] if job.gpus else []), *job.options],
        worker_extra_args=["--lifetime", f"{lifetime}s", "--memory-limit", "0"],
        scheduler_options={"dashboard_address": ":0"},
        silence_logs=logging.CRITICAL,
    )  # fmt: skip
