"""The command line: ``python -m panolib {runs,train,reproduce,data,bench,export}``. The rest is notebooks."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the commands import torch, --help does not
    from pathlib import Path

    from panolib.lab.run import Run
    from panolib.study.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 1 for an error that a user can mend, 130 if stopped."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `python -m panolib runs | head` has read enough; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def list_runs(options: argparse.Namespace) -> None:
    """Print every run of the study with its state. A damaged record is an error at the end."""
    from panolib.lab.records import DamagedRecord
    from panolib.load import load

    loaded = load(options.profile, train=False)
    rows = [("run", "kind", "state", "age", "wall", "result")]
    damaged = []
    for name, run in loaded.runs.items():
        try:
            rows.append(_describe_run(loaded, name))
        except DamagedRecord as error:
            rows.append((name, run.kind, "damaged", "-", "-", str(error).partition(";")[0]))
            damaged.append(str(error))
    _print_table(rows)
    states = [row[2] for row in rows[1:]]
    print(
        f"\n{options.profile}: {len(states)} runs, "
        + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    )
    if damaged:
        raise DamagedRecord("\n".join(dict.fromkeys(damaged)))


def train(options: argparse.Namespace) -> None:
    """Train the chosen runs, and those they start from."""
    from panolib.lab.engine import get_all, missing_runs
    from panolib.lab.run import with_parents
    from panolib.load import load

    loaded = load(options.profile)
    chosen = [run for name, run in loaded.runs.items() if fnmatch.fnmatch(name, options.only)]
    if not chosen:
        raise SystemExit(
            f"--only {options.only}: expected a pattern that fits a run; "
            f"the runs of this study are {', '.join(loaded.runs)}"
        )
    needed = with_parents(missing_runs(loaded.store, chosen))
    loaded.prepare_data(n_workers=options.workers, domains=dict.fromkeys(run.domain for run in needed))
    get_all(loaded.store, chosen, options.workers)


def reproduce(options: argparse.Namespace) -> int:
    """Write the data, train what is not recorded, execute the notebooks in order."""
    from panolib.config import project_root
    from panolib.lab.engine import get_all
    from panolib.lab.notebook import execute, numbered_notebooks
    from panolib.lab.run import with_parents
    from panolib.lab.store import retraining
    from panolib.load import load

    began = time.monotonic()
    loaded = load(options.profile)
    notebooks = _with_sections(loaded, numbered_notebooks(project_root() / "notebooks", options.notebook))
    names = dict.fromkeys(name for notebook in notebooks for name in loaded.notebooks.get(notebook.stem, ()))
    if options.dry_run:
        return _print_plan(loaded, [loaded.runs[name] for name in names], notebooks, options.workers)
    with retraining(loaded.store.root) if options.retrain else contextlib.nullcontext() as since:
        loaded.store.retrain_since = since
        runs = _with_data(loaded, [loaded.runs[name] for name in names])
        needed = with_parents(runs) if options.notebook else loaded.runs.values()
        loaded.prepare_data(n_workers=options.workers, domains=dict.fromkeys(run.domain for run in needed))
        get_all(loaded.store, runs, options.workers)
        for notebook in notebooks:
            parameters = {"profile": loaded.profile_argument, "retrain": False}
            execute(notebook, loaded.results / "executed", parameters)
    print(
        f"{len(runs)} runs and {len(notebooks)} notebooks in {_duration(time.monotonic() - began)}. "
        f"Executed notebooks and tables: {loaded.results}; figures: {loaded.figures}"
    )
    return 0


def data(options: argparse.Namespace) -> None:
    """Write the embedded data sets that are not there yet, and list the folders that the study reads."""
    from panolib.load import load

    loaded = load(options.profile)
    loaded.prepare_data(n_workers=options.workers)
    rows = [("data set", "files", "MB", "folder")]
    for name, folder in (item for sets in loaded.sources.values() for item in sets.folders.items()):
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        files = str(len(sizes)) if folder.is_dir() else "not here"
        rows.append((name, files, f"{sum(sizes) / 1e6:.1f}", str(folder)))
    _print_table(rows)
    print("\nnotebooks/00_data.ipynb shows what is in them")


def bench(options: argparse.Namespace) -> None:
    """Time the core operations anew, beside what people use today."""
    from panolib.bench.operations import pairs, slower_than
    from panolib.load import load
    from panolib.report.rows import write_csv
    from panolib.study import study

    loaded = load(options.profile)
    loaded.section("performance")
    run = loaded.runs[study.PERFORMANCE]
    loaded.prepare_data(domains=[run.domain])
    before = loaded.store.load(run)
    record = loaded.store.get(run, anew=True)
    rows = write_csv(pairs(record), loaded.results / "tables" / "performance.csv")
    print(rows[["operation", "size", "threads", "ratio", "agreement"]].to_string(index=False))
    print(f"written: {loaded.results / 'tables' / 'performance.csv'}")
    for line in slower_than(record, before):
        print(f"warning: {line}", file=sys.stderr)


def export(options: argparse.Namespace) -> None:
    """Write what a run predicts on its validation images, in the formats of the official tools."""
    from panolib.lab.run import with_parents
    from panolib.load import load
    from panolib.study.export import check_free, export_run, untrained

    loaded = load(options.profile)
    if options.run not in loaded.runs:
        near = difflib.get_close_matches(options.run, loaded.runs, n=3, cutoff=0.0)
        raise SystemExit(f"--run {options.run}: expected a run of this study, such as {', '.join(near)}")
    run = loaded.runs[options.run]
    check_free(options.out, options.overwrite)
    loaded.prepare_data(domains=dict.fromkeys(needed.domain for needed in with_parents([run])))
    missing = untrained(loaded.store, loaded.sources, run)
    if missing and loaded.store.train:
        print(
            f"trained first, for {loaded.results} lacks their weights (records that are there are replaced): "
            + ", ".join(needed.name for needed in missing),
            file=sys.stderr,
        )
    written = export_run(loaded.store, loaded.sources, run, options.out, overwrite=options.overwrite)
    _print_table([("files", "folder")] + [(str(n), str(options.out / name)) for name, n in written.items()])
    print("\nREADME.md, 'Official tools', says how to score them")


def _parser() -> argparse.ArgumentParser:
    """The options of every command."""
    parser = argparse.ArgumentParser(
        "python -m panolib", description="Self-trained panoptic segmentation: a study in notebooks."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def add(command, profile: str | None = None) -> argparse.ArgumentParser:
        summary = command.__doc__.splitlines()[0]
        sub = commands.add_parser(command.__name__.removeprefix("list_"), help=summary, description=summary)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--profile",
            default=profile,
            required=profile is None,
            help="smoke, cpu, gpu or paper of notebooks/profiles, or the path of a YAML file, whose results "
            "are kept under its name",
        )
        return sub

    def add_workers(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--workers",
            type=_positive,
            default=min(2, n_cores),
            help="processes that train at the same time (default: %(default)s)",
        )

    add(list_runs, profile="cpu")
    sub = add(train)
    sub.add_argument(
        "--only", default="*", metavar="GLOB", help="names of runs, such as 'city-semantic-*-s0'"
    )
    add_workers(sub)
    sub = add(reproduce)
    sub.add_argument("--notebook", metavar="NN", help="only the notebooks whose name begins so, such as 07")
    sub.add_argument(
        "--retrain", action="store_true", help="train recorded runs again; a stopped one goes on"
    )
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only open the data, build every run and network, check what the notebooks ask for, and print "
        "runs, iterations, disk, memory and hours; exit status 0 if it could run, 1 with a line for each "
        "problem if not",
    )
    add_workers(sub)
    add_workers(add(data))
    add(bench, profile="cpu")
    sub = add(export)
    sub.add_argument(
        "--run", required=True, metavar="NAME", help="a panoptic run, or a run of a semantic network"
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="an empty folder, or a new one")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    return parser


def _positive(text: str) -> int:
    """A number of workers."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message says all there is to say; another one shows where in the code it arose."""
    from panolib.config import ProfileError
    from panolib.data.errors import DataError
    from panolib.inference.exports import ExportError
    from panolib.lab.files import CorruptCheckpoint
    from panolib.lab.notebook import NotebookFailed
    from panolib.lab.records import DamagedRecord
    from panolib.lab.run import MissingRun, RunsFailed
    from panolib.models.weights import WeightsError

    return (
        NotebookFailed, ProfileError, DataError, CorruptCheckpoint, DamagedRecord, MissingRun, RunsFailed,
        FileNotFoundError, ExportError, WeightsError, FileExistsError, NotADirectoryError, PermissionError,
    )  # fmt: skip


def _with_sections(loaded: Study, notebooks: Sequence[Path]) -> list[Path]:
    """Notebooks whose sections the profile has. Says which ones are left out; an error if none remains."""
    from panolib.study.study import MissingSection

    left_out = loaded.notebooks.left_out
    reasons = [left_out[path.stem] for path in notebooks if path.stem in left_out]
    kept = [path for path in notebooks if path.stem not in left_out]
    if not kept:
        raise MissingSection("; ".join(reasons))
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)
    return kept


def _print_plan(loaded: Study, runs: Sequence[Run], notebooks: Sequence[Path], workers: int) -> int:
    """What `reproduce` would do. Exit status: 0 if it could, 1 with a line for each problem."""
    from panolib.dry_run import make_plan

    plan = make_plan(loaded, runs, workers=workers)
    _print_table(plan.rows)
    print(f"\n{loaded.profile_name}: {len(notebooks)} notebooks, whose runs are all declared")
    print(*plan.lines, sep="\n")
    for problem in plan.problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if plan.problems else 0


def _with_data(loaded: Study, runs: Sequence[Run]) -> list[Run]:
    """Runs that are recorded or whose data is on this machine. Says which ones are left out."""
    from panolib.study.study import is_available

    left_out = [run.name for run in runs if not is_available(loaded, run.name)]
    if left_out:
        reason = "their data is not on this machine (notebooks/README.md, 'Real data')"
        print(f"left out, for {reason}: {', '.join(left_out)}", file=sys.stderr)
    return [run for run in runs if run.name not in left_out]


def _describe_run(loaded: Study, name: str) -> tuple[str, ...]:
    """One line of the list of runs."""
    from panolib.lab.records import DamagedRecord

    run = loaded.runs[name]
    if damage := loaded.store.damage(run):
        raise DamagedRecord(damage)
    state, record = loaded.store.state(run), loaded.store.load(run)
    shared = "" if run.name == name else f"that of {run.name}"
    if record is None:
        holder = loaded.store.holder(run)
        return name, run.kind, state, "-", "-", f"by {holder}" if holder else shared
    age = _duration(time.time() - record.recorded_at)
    return name, run.kind, state, age, _duration(record.info["wall_s"]), shared or loaded.headline(record)


def _duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns under their headings."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
