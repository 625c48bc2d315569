"""What `reproduce` would do, without doing it: nothing is trained, rendered, downloaded or written.

Data sets are opened and their first sample is read, every network is built without memory for its weights,
and what recorded runs took says what the others will take.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from panolib.data.errors import MissingData
from panolib.data.readers.own import OwnSources
from panolib.errors import one_line
from panolib.lab.engine import missing_runs, without_weights
from panolib.lab.files import check_writable
from panolib.lab.records import Record
from panolib.lab.run import Run, with_parents
from panolib.labels import LABEL_SETS
from panolib.models.complexity import n_parameters
from panolib.related.detr.network import DetrNetwork, build_detr
from panolib.related.mean_teacher.library import PeerNetwork, build_peer
from panolib.related.realtime.meta_pseudo_labels import MetaSpec
from panolib.study.parents import has_teacher
from panolib.study.study import Study
from panolib.training.setup import NoDevice, build_instance, build_semantic, build_shared, launch
from panolib.training.specs import InstanceNetwork, SemanticNetwork, SharedNetworks

BYTES_PER_PIXEL = 2.0  # of a rendered scene with its labels; 1.3 to 3 measured, small images need more
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}  # values that an optimiser keeps for every parameter
NOT_MEASURED = "not measured"

Network = SemanticNetwork | InstanceNetwork | SharedNetworks | DetrNetwork | PeerNetwork


@dataclass(frozen=True)
class Plan:
    """What would be done.

    `rows` is a table by domain and kind of run, headings first; `lines` say data, disk, memory and time in
    all, and what would be left out; `problems` what keeps it from running.
    """

    rows: list[tuple[str, ...]]
    lines: list[str]
    problems: list[str]


class _Size(NamedTuple):
    """Of a network: number of parameters, and bytes of these and of its buffers."""

    parameters: int
    n_bytes: int


def make_plan(study: Study, runs: Iterable[Run], *, workers: int) -> Plan:
    """What recording some runs, and those that they start from, would take, `workers` of them at a time.

    Raises OSError for results that are not there and cannot be made.
    """
    _check_no_file(study.results)
    runs = with_parents(runs)
    records = {run.name: study.store.load(run) for run in runs}
    missing = _to_train(study, runs, records)
    recorded = [record for record in records.values() if record is not None]
    sizes, problems = _build_networks(runs, missing)
    problems += _device_problems(missing)
    to_render, data_lines, found = _open_data(study, runs, missing)
    problems += found
    try:
        check_writable(study.results)
    except OSError as error:
        problems.append(f"results: {error}")
    disk_line, found = _disk(study, missing, sizes, to_render, workers)
    problems += found
    hours = {run.name: _expected_hours(run, recorded) for run in missing}
    n_iterations = sum(map(_iterations, missing))
    total = f"{len(runs)} runs, {len(missing)} of them to do, {n_iterations:,} iterations"
    memory_line = _memory_line(missing, recorded, sizes, workers)
    lines = [total, *data_lines, disk_line, memory_line, _time_line(hours)]
    return Plan(_rows(runs, sizes, hours), lines, list(dict.fromkeys(problems)))


def print_plan(
    loaded: Study, runs: Sequence[Run], notebooks: Sequence[Path], own: Mapping[str, Sequence[Run]],
    workers: int,
) -> int:  # fmt: skip
    """What `reproduce` and, on own data, `train` would do. Returns 0, or 1 with a line for each problem."""
    plan = make_plan(loaded, [*runs, *(run for members in own.values() for run in members)], workers=workers)
    print_table(plan.rows)
    print(f"\n{loaded.profile_name}: {len(notebooks)} notebooks, whose runs are all declared")
    for domain, members in own.items():
        command = f"python -m panolib train --profile {loaded.profile_argument} --only '{domain}-*'"
        print(f"{domain}: {len(members)} runs on your data, of no notebook; {command} trains them")
    print(*plan.lines, sep="\n")
    for problem in plan.problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if plan.problems else 0


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns under their headings."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def own_runs(study: Study) -> dict[str, list[Run]]:
    """{domain: runs} of ladders on a user's own data, for which no notebook asks."""
    domains = [domain for domain, sources in study.sources.items() if isinstance(sources, OwnSources)]
    return {domain: [run for run in study.runs.values() if run.domain == domain] for domain in domains}


def check_disk(study: Study, runs: Iterable[Run], *, workers: int) -> None:
    """Raise OSError unless the disk takes what training some runs, and those they start from, will write."""
    _check_no_file(study.results)
    missing = missing_runs(study.store, runs)
    if not missing:
        return
    check_writable(study.results)
    missing = _to_train(study, missing, dict.fromkeys(run.name for run in missing))
    sizes, _ = _build_networks(missing, missing)
    to_render: dict[str, tuple[int, int]] = {}
    for domain in dict.fromkeys(run.domain for run in missing):
        to_render |= study.sources[domain].to_render()
    _, problems = _disk(study, missing, sizes, to_render, workers)
    if problems:
        raise OSError(problems[0])


def _to_train(study: Study, runs: Sequence[Run], records: Mapping[str, Record | None]) -> list[Run]:
    """Runs without a record, and those that they start from whose record is here without its weights."""
    missing = {run.name: run for run in runs if records[run.name] is None}
    parents = [part for run in missing.values() for part in run.parents]
    needed = [parent for role, parent in parents if role.partition(".")[0] != "clustering"]
    return list((missing | {run.name: run for run in without_weights(study.store, needed)}).values())


# --- networks ---------------------------------------------------------------------------------------------


def _build_networks(
    runs: Sequence[Run], missing: Sequence[Run]
) -> tuple[dict[str, _Size], list[str]]:
    """({run: size of the network that it trains or adapts}, problems).

    A network whose optional package is not installed is a problem of runs in `missing` only.
    """
    built: dict[tuple[Network, int], _Size | None] = {}
    sizes, problems = {}, []
    to_train = {run.name for run in missing}
    for run in sorted(runs, key=lambda run: run.name not in to_train):
        networks = [part for part in _parts(run.spec) if isinstance(part, Network)]  # also timed ones
        if not networks:
            continue
        n_classes = LABEL_SETS[run.spec.label_set].n_classes
        for network in networks:
            if (network, n_classes) not in built:
                try:
                    built[network, n_classes] = _build(network, n_classes)
                except (ValueError, RuntimeError, ImportError) as error:
                    built[network, n_classes] = None
                    if isinstance(error, ImportError) and run.name not in to_train:
                        continue
                    problems.append(f"network of {run.name}: {one_line(error)}")
        own = built.get((getattr(run.spec, "network", None), n_classes))
        if own is not None:
            sizes[run.name] = own
    return sizes, problems


def _parts(value: Any) -> Iterator[Any]:
    """A value of a spec and everything in it."""
    yield value
    if dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    else:
        inner = value if isinstance(value, list | tuple) else []
    for part in inner:
        yield from _parts(part)


def _build(network: Network, n_classes: int) -> _Size:
    """Size of a network, whose weights are neither read nor drawn."""
    with torch.device("meta"):
        if isinstance(network, DetrNetwork):
            model = build_detr(network, n_classes, pretrained=False)
        elif isinstance(network, PeerNetwork):
            model = build_peer(network)
        elif isinstance(network, InstanceNetwork):
            model = build_instance(network, pretrained=False)
        else:
            build = build_shared if isinstance(network, SharedNetworks) else build_semantic
            model = build(network, n_classes, pretrained=False)
    tensors = (*model.parameters(), *model.buffers())
    return _Size(n_parameters(model), sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _device_problems(missing: Sequence[Run]) -> list[str]:
    """The accelerator that the runs ask for, if it is not there."""
    computes = [run.spec.compute for run in missing if hasattr(run.spec, "compute")]
    asked = {compute.accelerator: compute for compute in computes}
    problems = []
    for name in sorted(asked.keys() - {"auto", "cpu"}):
        try:
            launch(asked[name])
        except NoDevice as error:
            problems.append(str(error))
    return problems


# --- data -------------------------------------------------------------------------------------------------


def _open_data(
    study: Study, runs: Sequence[Run], missing: Sequence[Run]
) -> tuple[dict[str, tuple[int, int]], list[str], list[str]]:
    """({data sets to render: (images, pixels)}, what was found, problems): what missing runs read.

    Notebooks replay the others, but may show the rendered data of their domains.
    """
    to_render: dict[str, tuple[int, int]] = {}
    lines, problems = [], []
    for domain in dict.fromkeys(run.domain for run in runs):
        sources, opened, absent = study.sources[domain], [], []
        try:
            to_render |= sources.to_render()
        except ValueError as error:  # another data set lies in the place of a rendered one
            problems.append(f"data: {one_line(error)}")
            continue
        named = dict.fromkeys(
            name for run in missing if run.domain == domain for name in _data_sets(run, sources)
        )
        for name in named:
            images, colon, _ = name.partition(":")
            if images.startswith(tuple(to_render)) or (colon and images in named):  # read with their labels
                continue
            try:
                dataset = sources.open(name)
                dataset[0]
                opened.append(f"{name} {len(dataset)}")
            except MissingData as error:
                if isinstance(sources, OwnSources):
                    problems.append(f"data of {domain}: {one_line(error)}")
                else:  # `reproduce` leaves these runs out
                    absent.append(one_line(error))
            except (OSError, ValueError) as error:
                problems.append(f"data: {one_line(error)}")
        lines += [f"data of {domain}, images: {', '.join(opened)}"] if opened else []
        lines += [f"left out: runs of {domain}, for {reason}" for reason in dict.fromkeys(absent)]
    if to_render:
        scenes = ", ".join(f"{name.strip('/')} {n}" for name, (n, _) in to_render.items())
        lines.append(f"data to be rendered, images: {scenes}")
    return to_render, lines, problems


def _data_sets(run: Run, sources: Any) -> Iterator[str]:
    """Names of the data sets that a run reads, in their parts."""
    for text in (part for part in _parts(run.spec) if isinstance(part, str)):
        try:
            sources.check(text)
        except ValueError:
            continue
        yield from sources.parts(text)


# --- disk, memory, time -----------------------------------------------------------------------------------


def _disk(
    study: Study, missing: Sequence[Run], sizes: Mapping[str, _Size], to_render: Mapping, workers: int
) -> tuple[str, list[str]]:
    """What is written in all, and a problem if it does not fit."""
    trained = [(run, sizes[run.name]) for run in missing if run.name in sizes]
    checkpoints = sum((1 + has_teacher(run)) * size.n_bytes for run, size in trained)
    resumable = workers * max((_training_bytes(run, size) for run, size in trained), default=0)
    rendered = BYTES_PER_PIXEL * sum(pixels for _, pixels in to_render.values())
    wanted = checkpoints + resumable + rendered
    folder = next(folder for folder in (study.results, *study.results.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    line = (
        f"disk: {_gb(checkpoints)} final weights, {_gb(resumable)} checkpoints of runs in training, "
        f"{_gb(rendered)} rendered data (estimate); {_gb(free)} are free"
    )
    problem = f"disk of {folder}: expected {_gb(wanted)} free space, found {_gb(free)}"
    return line, [problem] if wanted > free else []


def _check_no_file(results: Path) -> None:
    """Raise an OSError for a file in the place of the results, below which every record seems damaged."""
    if not results.is_dir():
        check_writable(results)


def _training_bytes(run: Run, size: _Size) -> int:
    """Weights, state of the optimiser, and teacher, that training keeps in memory and in its checkpoint."""
    optimiser = getattr(run.spec, "optimiser", None)
    if optimiser is None:
        return size.n_bytes
    trained = 1 + MOMENTS[optimiser.name]
    networks = 2 * trained if isinstance(run.spec, MetaSpec) else trained + hasattr(run.spec, "ema_decay")
    return networks * size.n_bytes


def _memory_line(
    missing: Sequence[Run], recorded: Sequence[Record], sizes: Mapping[str, _Size], workers: int
) -> str:
    """What the largest run needs: counted for weights, measured for everything where runs are recorded."""
    trained = [run for run in missing if run.name in sizes and hasattr(run.spec, "optimiser")]
    need = {run.name: _training_bytes(run, sizes[run.name]) + sizes[run.name].n_bytes for run in trained}
    counted = "nothing is left to train"
    if need:
        largest = max(need, key=need.get)
        counted = (
            f"{_gb(need[largest])} for weights, gradients, optimiser and teacher of {largest}, {workers} "
            "run(s) at a time; activations come on top"
        )
    peaks = {record.run.name: record.info.get("peak_memory_mb") or 0 for record in recorded}
    highest = max(peaks, key=peaks.get, default="")
    measured = f"{_gb(2**20 * peaks[highest])} in {highest}" if peaks.get(highest) else NOT_MEASURED
    return f"memory: {counted}; largest peak of a recorded run: {measured}"


def _expected_hours(run: Run, recorded: Sequence[Record]) -> float | None:
    """From recorded runs of the same kind in this profile, by iterations; None where there is none."""
    alike = [record for record in recorded if record.run.kind == run.kind]
    wall = sum(record.info["wall_s"] for record in alike)
    work = sum(max(1, _iterations(record.run)) for record in alike)
    return wall / work * max(1, _iterations(run)) / 3600 if alike else None


def _iterations(run: Run) -> int:
    """Steps of training, or batches of which statistics are taken; 0 for scores."""
    return getattr(run.spec, "iterations", getattr(run.spec, "n_batches", 0))


def _time_line(hours: Mapping[str, float | None]) -> str:
    """What the missing runs take one after another."""
    known = [value for value in hours.values() if value is not None]
    if not hours:
        return "time: every run is recorded"
    if not known:
        return f"time: {NOT_MEASURED}: no run of these kinds is recorded in this profile"
    rest = f"; {len(hours) - len(known)} runs {NOT_MEASURED}" if len(known) < len(hours) else ""
    return f"time: {sum(known):.1f} h one after another, as recorded runs of the same kinds took{rest}"


def _rows(
    runs: Sequence[Run], sizes: Mapping[str, _Size], hours: Mapping[str, float | None]
) -> list[tuple[str, ...]]:
    """The table by domain and kind."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.domain, run.kind].append(run)
    rows = [("domain", "kind", "runs", "to do", "iterations to do", "M parameters", "hours to do")]
    for (domain, kind), members in sorted(groups.items()):
        left = [run for run in members if run.name in hours]
        parameters = sorted(
            {round(sizes[run.name].parameters / 1e6, 2) for run in members if run.name in sizes}
        )
        expected = [hours[run.name] for run in left]
        rows.append((
            domain, kind, str(len(members)), str(len(left)), f"{sum(map(_iterations, left)):,}",
            " to ".join(dict.fromkeys(f"{value:g}" for value in (parameters[:1] + parameters[-1:]))) or "-",
            NOT_MEASURED if None in expected else f"{sum(expected):.1f}",
        ))  # fmt: skip
    return rows


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes < 1e11 else f"{n_bytes / 1e9:.0f} GB"
