"""The commands of ``python -m panolib``, each a function of its options."""

from __future__ import annotations

import _thread
import contextlib
import difflib
import fnmatch
import shlex
import signal
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from panolib.dry_run import check_disk, own_runs, print_plan, print_table
from panolib.lab.cluster import ClusterError, Workers, read_slurm_job
from panolib.lab.engine import get_all, missing_runs, without_weights
from panolib.lab.files import check_writable, write
from panolib.lab.notebook import execute_all, numbered_notebooks
from panolib.lab.pack import pack as write_pack
from panolib.lab.pack import unpack as read_pack
from panolib.lab.records import DamagedRecord
from panolib.lab.run import Run, with_parents
from panolib.lab.store import retraining
from panolib.load import load
from panolib.profiles import project_root
from panolib.report.model_card import model_card
from panolib.report.rows import write_csv
from panolib.study.apply import SHIPPED
from panolib.study.export import check_exportable, check_free, export_run, untrained
from panolib.study.packaged import NoWeights, packaged_runs, write_package
from panolib.study.person import check_has_pairs, write_run_pairs
from panolib.study.settings import MissingSection
from panolib.study.study import PERFORMANCE, Study, is_available
from panolib.training.ranks import follows
from panolib.your_images.adapt import adapt as adapt_to
from panolib.your_images.predict_files import predict_files, report

RUNS_OF = "cpu"  # profile whose runs `predict` knows by name


def list_runs(options: Namespace) -> None:
    """Print every run of the study with its state. A damaged record is an error at the end."""
    loaded = load(options.profile, train=False)
    rows = [("run", "kind", "state", "age", "wall", "result")]
    damaged = []
    for name, run in loaded.runs.items():
        if damage := loaded.store.damage(run):
            rows.append((name, run.kind, "damaged", "-", "-", damage.partition(";")[0]))
            damaged.append(damage)
        else:
            rows.append(_describe_run(loaded, name))
    print_table(rows)
    states = [row[2] for row in rows[1:]]
    print(
        f"\n{options.profile}: {len(states)} runs, "
        + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    )
    if damaged:
        raise DamagedRecord("\n".join(dict.fromkeys(damaged)))


def train(options: Namespace) -> None:
    """Train the chosen runs, and those they start from."""
    _check_cluster(options)
    loaded = load(options.profile)
    chosen = [run for name, run in loaded.runs.items() if fnmatch.fnmatch(name, options.only)]
    if not chosen:
        raise SystemExit(
            f"--only {options.only}: expected a pattern that fits a run; "
            f"the runs of this study are {', '.join(loaded.runs)}"
        )
    _check_devices(chosen, options)
    check_disk(loaded, chosen, workers=options.workers)
    _prepare(loaded, missing_runs(loaded.store, chosen), n_workers=options.workers)
    with _deadline(options.minutes) as over:
        get_all(loaded.store, chosen, _workers(options))
    if over():
        missing = len(missing_runs(loaded.store, chosen))
        print(f"stopped after {options.minutes:g} min, {missing} runs are missing; the same command goes on")
    elif not follows():
        print(_what_next(loaded, chosen, options.profile))


def _what_next(loaded: Study, runs: Sequence[Run], profile: str) -> str:
    """Where trained runs lie, and the command that makes weights for `predict` of one of them."""
    listed = shlex.join(["runs", "--profile", profile])
    lines = [f"{len(runs)} runs in {loaded.results / 'runs'}; python -m panolib {listed}"]
    panoptic = [run for run in runs if run.kind == "panoptic"]
    if panoptic:
        run = next((run for run in panoptic if run.rung == "self_trained"), panoptic[-1])
        command = ["weights", "--profile", profile, "--run", run.name, "--out", f"{run.name}.safetensors"]
        lines.append(f"weights for predict: python -m panolib {shlex.join(command)}")
    return "\n".join(lines)


@contextlib.contextmanager
def _deadline(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Stop the work of the block, as Ctrl-C would, after so many minutes; never for None.

    Yields what says whether that happened.
    """
    passed = threading.Event()

    def stop() -> None:
        passed.set()
        _thread.interrupt_main()

    if minutes is None:
        yield passed.is_set
        return
    # a shell's background command ignores Ctrl-C, and Python then leaves it without its handler
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    timer.start()
    try:
        yield passed.is_set
    except KeyboardInterrupt:
        if not passed.is_set():
            raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def pack(options: Namespace) -> None:
    """Write records and half-precision weights in parts of bounded size."""
    loaded = load(options.profile, train=False)
    runs = {run.name: run for run in loaded.runs.values()}
    paths = write_pack(loaded.store, runs.values(), options.out)
    print_table([("file", "MB")] + [(str(path), f"{path.stat().st_size / 1e6:.1f}") for path in paths])


def unpack(options: Namespace) -> None:
    """Put packed records and weights of another machine among those of a profile."""
    loaded = load(options.profile, train=False)
    names = read_pack(loaded.store, options.folder)
    known = {run.name: run for run in loaded.runs.values()}
    fit = sum(name in known and loaded.store.load(known[name]) is not None for name in names)
    print(f"{len(names)} runs unpacked below {loaded.results}; {fit} are runs of this profile as it is")


def reproduce(options: Namespace) -> int:
    """Write the data, train what is not recorded, execute the notebooks, first those that always train."""
    began = time.monotonic()
    _check_cluster(options)
    loaded = load(options.profile)
    notebooks = _with_sections(loaded, numbered_notebooks(project_root() / "notebooks", options.notebook))
    names = dict.fromkeys(name for notebook in notebooks for name in loaded.notebooks.get(notebook.stem, ()))
    if options.dry_run:
        own = {} if options.notebook else own_runs(loaded)
        return print_plan(loaded, [loaded.runs[name] for name in names], notebooks, own, options.workers)
    check_writable(loaded.results)
    with retraining(loaded.store.root) if options.retrain else contextlib.nullcontext(0.0) as since:
        loaded.store.retrain_since = since
        runs = _with_data(loaded, [loaded.runs[name] for name in names])
        _check_devices(runs, options)
        check_disk(loaded, runs, workers=options.workers)
        _prepare(loaded, runs if options.notebook else loaded.runs.values(), n_workers=options.workers)
        get_all(loaded.store, runs, _workers(options))
        if follows():
            return 0  # the first process of several does the rest
        parameters = {"profile": loaded.profile_argument, "retrain": False}
        notebooks.sort(key=lambda path: bool(loaded.notebooks.get(path.stem)))  # they take longest
        execute_all(notebooks, loaded.results / "executed", parameters, at_once=options.workers)
    print(
        f"{len(runs)} runs and {len(notebooks)} notebooks in {_duration(time.monotonic() - began)}. "
        f"Executed notebooks and tables: {loaded.results}; figures: {loaded.figures}"
    )
    return 0


def data(options: Namespace) -> None:
    """Write the embedded data sets that are not there yet, and list the folders that the study reads."""
    loaded = load(options.profile)
    loaded.prepare_data(n_workers=options.workers)
    rows = [("data set", "files", "MB", "folder")]
    for name, folder in (item for sets in loaded.sources.values() for item in sets.folders.items()):
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        files = str(len(sizes)) if folder.is_dir() else "not here"
        rows.append((name, files, f"{sum(sizes) / 1e6:.1f}", str(folder)))
    print_table(rows)
    print("\nnotebooks/00_data.ipynb shows what is in them")


def bench(options: Namespace) -> None:
    """Time the core operations anew, beside what people use today."""
    from panolib.bench.operations import pairs, slower_than  # a second to import, and only this needs it

    loaded = load(options.profile)
    loaded.section("performance")
    run = loaded.runs[PERFORMANCE]
    _prepare(loaded, [run])
    before = loaded.store.load(run)
    record = loaded.store.get(run, anew=True)
    rows = write_csv(pairs(record), loaded.results / "tables" / "performance.csv")
    print(rows[["operation", "size", "threads", "ratio", "agreement"]].to_string(index=False))
    print(f"written: {loaded.results / 'tables' / 'performance.csv'}")
    for line in slower_than(record, before):
        print(f"warning: {line}", file=sys.stderr)


def export(options: Namespace) -> None:
    """Write what a run predicts on its validation images, in the formats of the official tools."""
    loaded = load(options.profile)
    run = _named_run(loaded, options.run)
    check_exportable(run)  # before data is rendered and networks are trained
    check_free(options.out, options.overwrite)
    _prepare(loaded, [run])
    _say_trained_first(loaded, untrained(loaded.store, loaded.sources, run))
    written = export_run(loaded.store, loaded.sources, run, options.out, overwrite=options.overwrite)
    print_table([("files", "folder")] + [(str(n), str(options.out / name)) for name, n in written.items()])
    print("\nREADME.md, 'Official tools', says how to score them")


def pairs(options: Namespace) -> None:
    """Write the pairs of a candidates run for a person to choose from."""
    loaded = load(options.profile, train=False)
    run = _named_run(loaded, options.run)
    check_has_pairs(loaded.store, run, options.out)  # before data is rendered
    _prepare(loaded, [run])
    n = write_run_pairs(loaded.store, loaded.sources, run, options.out)
    print(f"{n} pairs: {options.out}\n\nnotebooks/README.md, 'Your answers', says how to answer them")


def weights(options: Namespace) -> None:
    """Write the networks that a panoptic run scored to one file, and beside it their model card."""
    loaded = load(options.profile)
    run = _named_run(loaded, options.run)
    networks = packaged_runs(run)
    if options.out.suffix != ".safetensors":
        raise SystemExit(f"--out {options.out}: expected a file name that ends in .safetensors")
    check_writable(options.out.parent)
    missing = without_weights(loaded.store, networks)
    if missing or loaded.store.load(run) is None:
        _prepare(loaded, [run])
        _say_trained_first(loaded, missing)
    recipe = write_package(loaded.store, loaded.sources, run, options.out, small=options.small)
    card = options.out.with_suffix(".md")
    text = model_card(loaded.store, loaded.sources, run, recipe, options.out.name, small=options.small)
    write(card, text.encode())
    rows = [(str(path), f"{path.stat().st_size / 1e6:.1f}") for path in (options.out, card)]
    print_table([("file", "MB"), *rows])


def predict(options: Namespace) -> int:
    """Write what networks say about image files. Exit status 1 where an image could not be predicted."""
    with _packaged(options.weights) as weights:
        broken = predict_files(
            options.images, weights, options.out, overwrite=options.overwrite, scale=options.scale,
            diameter=options.diameter, tile=options.tile, views=options.views,
        )  # fmt: skip
    return report(broken, options.out)


def _workers(options: Namespace) -> Workers:
    """Where the options say that runs are trained."""
    return Workers(options.workers, options.cluster, options.cluster_settings, options.scheduler)


def _check_cluster(options: Namespace) -> None:
    """Raise a UserError for settings that no cluster takes or that it cannot read, before data is drawn."""
    if options.cluster == "slurm":
        read_slurm_job(options.cluster_settings)
    elif options.cluster_settings is not None:
        file = options.cluster_settings
        raise ClusterError(f"--cluster-settings {file}: expected --cluster slurm beside it, found none")


def _check_devices(runs: Iterable[Run], options: Namespace) -> None:
    """Exit where several runs at a time would each have several processes."""
    several = [run.name for run in runs if getattr(getattr(run.spec, "compute", None), "n_processes", 1) > 1]
    if several and not _workers(options).in_process:
        raise SystemExit(
            f"--workers {options.workers}, --cluster {options.cluster}: expected --workers 1 on this machine "
            f"with compute.devices or compute.num_nodes above 1, as {several[0]} has"
        )


def adapt(options: Namespace) -> int:
    """Adapt networks to images without labels. Exit status 1 where an image could not be predicted."""
    begins = contextlib.nullcontext() if options.start is None else _packaged(options.start)
    with begins as start:
        return adapt_to(
            options.source, options.target, options.out, start=start, profile=options.profile,
            labels=options.labels, label_set=options.label_set, diameter=options.diameter,
            intensity=options.intensity, workers=options.workers, minutes=options.minutes,
        )  # fmt: skip


@contextlib.contextmanager
def _packaged(weights: str) -> Iterator[str]:
    """Shipped names and files as they are; a run of profile cpu as a file that is there for the block."""
    if weights in SHIPPED or Path(weights).exists():
        yield weights
        return
    loaded = load(RUNS_OF, train=False)
    if weights not in loaded.runs:
        yield weights  # whoever opens it says what was expected
        return
    run = loaded.runs[weights]
    missing = [run.name] if loaded.store.load(run) is None else []
    missing += [network.name for network in without_weights(loaded.store, packaged_runs(run))]
    if missing:
        raise NoWeights(
            f"weights {weights!r}: not trained on this machine: {', '.join(missing)}; expected their weights "
            f"beside the records: python -m panolib weights --profile {RUNS_OF} --run {weights} --out FILE "
            "trains them"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{weights}.safetensors"
        write_package(loaded.store, loaded.sources, run, path)
        yield str(path)


def _named_run(loaded: Study, name: str) -> Run:
    """The run that a user names."""
    if name not in loaded.runs:
        near = difflib.get_close_matches(name, loaded.runs, n=3, cutoff=0.0)
        raise SystemExit(f"--run {name}: expected a run of this study, such as {', '.join(near)}")
    return loaded.runs[name]


def _prepare(loaded: Study, runs: Iterable[Run], n_workers: int = 1) -> None:
    """Write the data of runs and of their parents that is not there yet."""
    loaded.prepare_data(n_workers=n_workers, domains=dict.fromkeys(run.domain for run in with_parents(runs)))


def _say_trained_first(loaded: Study, missing: Sequence[Run]) -> None:
    """Name the networks that have to be trained first."""
    if missing and loaded.store.train:
        print(
            f"trained first, for {loaded.results} lacks their weights (records that are there are replaced): "
            + ", ".join(needed.name for needed in missing),
            file=sys.stderr,
        )


def _with_sections(loaded: Study, notebooks: Sequence[Path]) -> list[Path]:
    """Notebooks whose sections the profile has. Says which ones are left out; an error if none remains."""
    left_out = loaded.notebooks.left_out
    reasons = [left_out[path.stem] for path in notebooks if path.stem in left_out]
    kept = [path for path in notebooks if path.stem not in left_out]
    if not kept:
        raise MissingSection("; ".join(reasons))
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)
    return kept


def _with_data(loaded: Study, runs: Sequence[Run]) -> list[Run]:
    """Runs that are recorded or whose data is on this machine. Says which ones are left out."""
    left_out = [run.name for run in runs if not is_available(loaded, run.name)]
    if left_out:
        reason = "their data is not on this machine (notebooks/README.md, 'Real data')"
        print(f"left out, for {reason}: {', '.join(left_out)}", file=sys.stderr)
    return [run for run in runs if run.name not in left_out]


def _describe_run(loaded: Study, name: str) -> tuple[str, ...]:
    """One line of the list of runs."""
    run = loaded.runs[name]
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
