"""Runs on workers: some die, a scheduler that runs is used, SLURM jobs are submitted; nothing is left."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from toy_kinds import KINDS, get_all_in_child, get_shared_in_child, toy_run, train_or_die, trained

from panolib.__main__ import _parser
from panolib.commands import _workers
from panolib.config import ProfileError
from panolib.lab import cluster, engine, graph
from panolib.lab.cluster import (
    OF_THIS_MACHINE,
    ClusterError,
    Workers,
    connect,
    read_slurm_job,
    slurm_cluster,
)
from panolib.lab.engine import get_all
from panolib.lab.run import Run, RunsFailed
from panolib.lab.store import Store
from panolib.profiles import project_root

ROOT = project_root(Path(__file__).parent)
PATHS = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])  # where workers find toy_kinds and panolib


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results", KINDS, checkpoint_s=0.0)


def wait_for(condition, timeout_s: float = 180.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def pid_of(store: Store, run: Run) -> int:
    """Of the process that trains a run."""
    return json.loads((store.work_folder(run) / "job.json").read_text())["pid"]


def n_logged(store: Store, run: Run) -> int:
    """Lines of curves that a run in training has written."""
    file = store.work_folder(run) / "curves.csv"
    return file.read_text().count("\n") if file.exists() else 0


def result(store: Store, run: Run) -> list:
    """All that a training decides."""
    state = store.final_state(run)
    return [store.get(run).metrics["norm"], *(state[name].tolist() for name in sorted(state))]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


# ---- workers that die


def test_a_killed_worker_costs_neither_its_run_nor_another(store, tmp_path):
    victim = toy_run("victim", n_iterations=40, pause_s=0.05)
    runs = [victim, toy_run("child", parent=victim, n_iterations=3), toy_run("other", seed=1, n_iterations=3)]

    def kill():
        wait_for(lambda: n_logged(store, victim) > 5)
        os.kill(pid_of(store, victim), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    get_all(store, runs, workers=2)
    killer.join()
    assert sorted(trained(store.root)) == ["child", "other", "victim", "victim"]
    assert store.get(victim).info["wall_s"] >= 40 * 0.05  # both processes: the second went on
    serial = Store(tmp_path / "serial", KINDS)
    get_all(serial, runs)
    assert [result(store, run) for run in runs] == [result(serial, run) for run in runs]


def test_a_run_that_kills_its_worker_twice_takes_only_its_descendants_along(tmp_path):
    store = Store(tmp_path / "results", {"toy": train_or_die}, checkpoint_s=0.0)
    deadly = toy_run("deadly", n_iterations=2)
    others = [toy_run(f"other-{seed}", seed=seed, n_iterations=2) for seed in range(1, 4)]
    child = toy_run("child", parent=deadly, n_iterations=2)
    with pytest.raises(RunsFailed, match="run 'deadly' failed with its worker process died, and died again"):
        get_all(store, [deadly, child, *others], workers=2)
    assert [store.state(run) for run in (deadly, child, *others)] == ["partial", "missing", *["recorded"] * 3]
    assert trained(store.root).count("deadly") == 2


# ---- several commands


def test_runs_that_another_process_trains_are_passed_over_and_visited_again(store):
    shared = toy_run("shared", n_iterations=3)
    runs = [shared, toy_run("child", parent=shared, n_iterations=3), toy_run("other", seed=1, n_iterations=3)]
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=get_shared_in_child, args=(store.root, shared))
    child.start()
    wait_for(lambda: store.state(shared) == "training")
    get_all(store, runs, workers=2)
    child.join()
    assert trained(store.root) == ["other", "shared", "child"]


def test_stopping_a_command_leaves_no_worker(store):
    runs = [toy_run(f"run-{seed}", seed=seed, n_iterations=400, pause_s=0.1) for seed in range(2)]
    main = multiprocessing.get_context("spawn").Process(target=get_all_in_child, args=(store.root, runs, 2))
    main.start()
    wait_for(lambda: all(n_logged(store, run) for run in runs))
    pids = [pid_of(store, run) for run in runs]
    assert len({main.pid, *pids}) == 3
    os.kill(main.pid, signal.SIGINT)
    main.join(60)
    assert main.exitcode == 1 and not any(map(is_running, pids))
    assert {store.state(run) for run in runs} == {"partial"}


def test_no_callback_of_the_collector_swallows_ctrl_c(tmp_path):
    with connect(Workers(1), 1, tmp_path):
        assert not [callback for callback in gc.callbacks if callback.__module__.startswith("distributed")]


@pytest.fixture
def scheduler(tmp_path):
    """Address of a scheduler with two workers, each a process of its own; and their numbers."""
    file = tmp_path / "scheduler.json"
    python, options = [sys.executable, "-m"], ["--no-dashboard", "--scheduler-file", str(file)]
    environment = os.environ | {"PYTHONPATH": PATHS, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1"
    worker = [*python, "distributed.cli.dask_worker", *options, "--nthreads", "1", "--host", "127.0.0.1"]
    commands = [[*python, "distributed.cli.dask_scheduler", *options, "--host", "127.0.0.1", "--port", "0"]]
    commands += [worker, worker]
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands
    ]
    wait_for(lambda: file.exists() and file.read_text().endswith("}"))  # it is there before it is written
    yield json.loads(file.read_text())["address"], [process.pid for process in processes]
    for process in processes:
        process.kill()  # what trains ends with its nanny
        process.wait()


def train_on_scheduler(root: Path, runs: list[Run], address: str) -> None:
    get_all(Store(root, KINDS, checkpoint_s=0.0), runs, Workers(scheduler=address))


def test_a_scheduler_that_runs_trains_and_outlives_what_it_is_asked(store, scheduler):
    address, pids = scheduler
    parent = toy_run("parent", n_iterations=3)
    runs = [toy_run(f"child-{seed}", parent=parent, seed=seed, n_iterations=9) for seed in (1, 2)]
    get_all(store, runs, Workers(scheduler=address))
    assert trained(store.root)[0] == "parent" and sorted(trained(store.root)[1:]) == ["child-1", "child-2"]

    stopped = toy_run("stopped", n_iterations=400, pause_s=0.1)
    main = multiprocessing.get_context("spawn").Process(
        target=train_on_scheduler, args=(store.root, [stopped], address)
    )
    main.start()
    wait_for(lambda: n_logged(store, stopped) > 0)
    os.kill(main.pid, signal.SIGKILL)
    main.join()
    wait_for(lambda: store.holder(stopped) is None, 20)
    assert store.state(stopped) == "partial"
    assert all(map(is_running, pids))
    other = toy_run("other", seed=5, n_iterations=2)
    assert get_all(store, [other], Workers(scheduler=address))["other"].info["iterations"] == 2


def test_a_scheduler_that_goes_away_is_told_of(store, tmp_path):
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(file)]
    environment = os.environ | {"PYTHONPATH": PATHS, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: file.exists() and file.read_text().endswith("}"))  # it is there before it is written

    def kill():
        while "Receive client connection" not in process.stderr.readline():
            pass
        time.sleep(1.0)  # it has the runs now, and no worker
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ClusterError, match=r"scheduler tcp://127.0.0.1:\d+: it went away"):
        get_all(store, [toy_run()], Workers(scheduler=json.loads(file.read_text())["address"]))
    killer.join()
    process.wait()


def test_an_address_where_no_scheduler_is(store, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", "1s")
    for address in ("tcp://127.0.0.1:9", "nowhere://x"):
        with pytest.raises(ClusterError, match=f"--scheduler {address}: expected the address of a Dask s"):
            get_all(store, [toy_run()], Workers(scheduler=address))
    assert trained(store.root) == []


# ---- kinds of clusters

SETTINGS = """
queue: gpu
walltime: 1-02:30:00
cores: 4
memory: 16GB
gpus: 1
account: thesis
interface: lo
setup: [module load python]
options: [--exclusive]
"""
SCRIPT = f"""\
#!/usr/bin/env bash

#SBATCH -J panolib
#SBATCH -e LOGS/panolib-%J.err
#SBATCH -o LOGS/panolib-%J.out
#SBATCH -p gpu
#SBATCH -A thesis
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=15G
#SBATCH -t 1-02:30:00
#SBATCH --gpus=1
#SBATCH --exclusive
export OMP_NUM_THREADS=4
export MKL_NUM_THREADS=4
export OPENBLAS_NUM_THREADS=4
module load python
{sys.executable} -m distributed.cli.dask_worker ADDRESS --name dummy-name --nthreads 1 --memory-limit \
14.90GiB --no-nanny --death-timeout 60 --lifetime 95280s --memory-limit 0 --interface lo
"""


def test_the_job_script_asks_for_what_the_settings_say(tmp_path):
    (tmp_path / "slurm.yaml").write_text(SETTINGS)
    with slurm_cluster(read_slurm_job(tmp_path / "slurm.yaml"), tmp_path / "logs") as cluster:
        script = cluster.job_script().replace(cluster.scheduler_address, "ADDRESS")
    assert script.replace(str(tmp_path / "logs"), "LOGS") == SCRIPT


@pytest.mark.parametrize(
    ("written", "seconds"), [("12:00:00", 43200), ("00:10:00", 600), ("2-00:00:01", 172801), ("90", 90)]
)
def test_wall_times_are_read_as_slurm_does_and_as_yaml_does(tmp_path, written, seconds):
    (tmp_path / "slurm.yaml").write_text(f"queue: short\nwalltime: {written}\n")
    assert read_slurm_job(tmp_path / "slurm.yaml").seconds == seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("walltime: 1-02:30:00", "walltime: 30 h"), "walltime: expected .*minutes:seconds, found '30 h'"),
        (("cores: 4", "cores: 0"), "cores.*0"),
        (("queue: gpu", "partition: gpu"), "partition"),
        (("memory: 16GB", "memory: much"), "memory: expected a size such as 16GB, found .*much"),
    ],
)
def test_wrong_settings_are_named(tmp_path, change, message):
    (tmp_path / "slurm.yaml").write_text(SETTINGS.replace(*change))
    with pytest.raises(ProfileError, match=f"slurm.yaml: .*{message}"):
        read_slurm_job(tmp_path / "slurm.yaml")


def test_a_cluster_without_its_settings_or_package_is_one_error(store, tmp_path, monkeypatch):
    with pytest.raises(ClusterError, match="expected --cluster-settings FILE"):
        get_all(store, [toy_run()], Workers(cluster="slurm"))
    for name, extra in (("dask_cuda", "cuda"), ("dask_jobqueue", "cluster")):
        monkeypatch.setitem(sys.modules, name, None)
        kind = "slurm" if extra == "cluster" else extra
        (tmp_path / "slurm.yaml").write_text(SETTINGS)
        with pytest.raises(ClusterError, match=rf"--cluster {kind} needs .* install 'panolib\[{extra}\]'"):
            get_all(store, [toy_run()], Workers(cluster=kind, settings=tmp_path / "slurm.yaml"))
    assert trained(store.root) == []


def test_slurm_jobs_train_and_are_ended(store, tmp_path, monkeypatch):
    """`sbatch` and `scancel` of this machine: a job is a group of processes."""
    folder, jobs = tmp_path / "bin", tmp_path / "jobs.txt"
    folder.mkdir()
    for name, body in {
        "sbatch": f'cp "$1" {tmp_path}/job.sh; setsid bash {tmp_path}/job.sh > {tmp_path}/log 2>&1 &\n'
        f'echo $! >> {jobs}; echo "Submitted batch job $!"',
        "scancel": 'for job in "$@"; do kill -9 -- -"$job"; done',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", PATHS)
    settings = tmp_path / "slurm.yaml"
    settings.write_text("queue: short\nwalltime: 00:10:00\ninterface: lo\nmemory: 1GB\n")
    runs = [toy_run(f"run-{seed}", seed=seed, n_iterations=3) for seed in range(3)]
    records = get_all(store, runs, Workers(2, "slurm", settings))
    assert [record.info["iterations"] for record in records.values()] == [3, 3, 3]
    pids = [int(line) for line in jobs.read_text().split()]
    assert len(pids) == 2 and len(trained(store.root)) == 3
    wait_for(lambda: not any(map(is_running, pids)), 10)
    assert (store.root / "work" / ".slurm").is_dir()


def test_a_cluster_of_gpus_has_the_options_of_one_of_processes(store, monkeypatch):
    from distributed import LocalCluster

    stand_in = SimpleNamespace(LocalCUDACluster=lambda **options: LocalCluster(1, **options))
    monkeypatch.setitem(sys.modules, "dask_cuda", stand_in)
    assert get_all(store, [toy_run(n_iterations=2)], Workers(cluster="cuda"))["toy"].info["iterations"] == 2


@pytest.mark.parametrize("spec", [None, "bokeh"])
def test_the_dashboard_is_named_where_it_can_be_shown(store, monkeypatch, capsys, spec):
    client = SimpleNamespace(dashboard_link="http://127.0.0.1:8787/status")
    monkeypatch.setattr(engine, "connect", lambda *_: contextlib.nullcontext((client, None)))
    monkeypatch.setattr(engine, "find_spec", {"bokeh": spec}.__getitem__)
    monkeypatch.setattr(graph, "as_tasks", lambda client, store, runs, _: (None for run in runs))
    engine.get_all(store, [toy_run()], Workers(2))
    told = capsys.readouterr().err
    assert ("dashboard: http://127.0.0.1:8787/status\n" in told) == (spec is not None)


def test_the_dashboard_only_says_that_bokeh_is_missing_where_it_is():
    from distributed import LocalCluster

    with LocalCluster(0, **OF_THIS_MACHINE) as cluster:
        with urllib.request.urlopen(cluster.dashboard_link) as page:
            missing = b"needs bokeh" in page.read()
    assert missing == (find_spec("bokeh") is None)


def test_the_options_of_the_commands():
    command = ["reproduce", "--profile", "smoke", "--workers", "3"]
    parse = _parser().parse_args
    assert _workers(parse(command)) == Workers(3)
    assert _workers(parse([*command, "--scheduler", "tcp://a:1"])) == Workers(3, scheduler="tcp://a:1")
    slurm = [*command, "--cluster", "slurm", "--cluster-settings", "x.yaml"]
    assert _workers(parse(slurm)) == Workers(3, "slurm", Path("x.yaml"))
    kinds = Workers(1), Workers(2), Workers(1, "cuda"), Workers(scheduler="tcp://a:1")
    assert [workers.in_process for workers in kinds] == [True, False, False, False]
    with pytest.raises(SystemExit):
        parse([*slurm, "--scheduler", "tcp://a:1"])


def test_one_process_does_without_dask(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from toy_kinds import KINDS, Store, get_all, toy_run
        runs = [toy_run(f"run-{seed}", seed=seed, n_iterations=2) for seed in range(2)]
        get_all(Store(Path(sys.argv[1]), KINDS), runs)
        print({"dask", "distributed"} & set(sys.modules))"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PATHS})
    assert done.stdout == "set()\n", done.stderr
