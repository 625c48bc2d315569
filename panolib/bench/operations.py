"""Time, memory and agreement of the core operations beside what people use today, on the same input.

Ours and the reference take turns in one process, so that a busy machine slows both; the claim is the ratio
of the medians, absolute times are context. A row says how the results agree, and whether that is enough.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from panolib.bench.cases import (
    NO_SLOWER,
    TARGETS,
    Operation,
    bandwidth_of,
    embedding_field,
    instance_map,
    pair,
    scaling_operations,
    table_operations,
)
from panolib.bench.peers import peer_operations
from panolib.bench.references import DELTA_DIST
from panolib.bench.specs import PerformanceSpec
from panolib.clustering.algorithms import cluster
from panolib.data.photometry import network_input
from panolib.data.render import city
from panolib.inference.instances import predict_instances
from panolib.inference.panoptic import panoptic_truth
from panolib.inference.predict import one_by_one
from panolib.lab.measuring import (
    Measurement,
    Timer,
    measure_seconds,
    repeated,
    set_torch_threads,
    timer,
    with_peak_memory,
)
from panolib.lab.records import Record
from panolib.labels import LabelSet
from panolib.metrics.threat_score import ThreatScore
from panolib.scoring.evaluate import threat_scores
from panolib.study.run_specs import ClusteringCostSpec

BRIEF = 0.2  # seconds for which a quick function is called again and again before the next one's turn
WARN_BELOW = 0.8  # share of the recorded ratio
EMPTY_NOTEBOOK = """
import nbformat, nbclient
from panolib.lab.notebook import OwnKernel
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
nbclient.NotebookClient(notebook, kernel_manager_class=OwnKernel).execute()
"""
FIGURE = """
import io
import pandas
from panolib.report import plots
plots.use_style()
plots.points(pandas.DataFrame({"pixels": [1, 2], "ms": [1.0, 2.0]}), "pixels", "ms").savefig(io.BytesIO())
"""
STARTS = {
    "import torch": ["-c", "import torch"],
    "import panolib.study.kinds": ["-c", "import panolib.study.kinds"],
    "python -m panolib --help": ["-m", "panolib", "--help"],
    "execute an empty notebook": ["-c", EMPTY_NOTEBOOK],
    "import, draw and save a figure": ["-c", FIGURE],
}


def operation_rows(spec: PerformanceSpec, *, label: str = "") -> list[dict]:
    """One row per operation, size and number of threads: times, memory, ratio, agreement.

    Packages of others (`peers`) are compared on one thread, for which targets are set.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n_threads in spec.threads:
            with set_torch_threads(n_threads):
                rates = machine_rates()
                operations = list(table_operations(spec))
                if n_threads == 1:
                    operations += peer_operations(spec, Path(folder))
                for operation in tqdm(operations, desc=f"{label}{n_threads} thread(s)", leave=False):
                    moved = operation.moved * operation.input_bytes
                    floor_s = max(moved / rates["bytes_per_s"], operation.flop / rates["flop_per_s"])
                    for row in measure(operation, spec.repeats):
                        rows.append(row | {"floor_ms": 1e3 * floor_s, "threads": n_threads})
    return rows


def machine_rates() -> dict[str, float]:
    """What the processor reaches with the current number of threads: the floor under every operation.

    "bytes_per_s", read and written by a copy of memory far larger than the caches; "flop_per_s" of a float32
    product of square matrices. The best of five.
    """
    size = 2048
    values, copy = torch.ones(2**25), torch.empty(2**25)
    factor, product = torch.ones(size, size), torch.empty(size, size)
    copied = min(repeated(lambda: copy.copy_(values), 5).times)
    multiplied = min(repeated(lambda: torch.mm(factor, factor, out=product), 5).times)
    return {"bytes_per_s": 2 * values.nbytes / copied, "flop_per_s": 2 * size**3 / multiplied}


def measure(operation: Operation, repeats: int) -> list[dict]:
    """Rows of one operation: memory and agreement first, then `repeats` rounds in which all take turns."""
    functions = {"": operation.reference} | {name: ours.function for name, ours in operation.ours.items()}
    memory, results, slow = {}, {}, {}
    for name, function in functions.items():
        if name:
            function()  # so that libraries have their buffers; the references take too long for that
        began = timer()
        results[name], memory[name] = with_peak_memory(function)
        slow[name] = timer() - began > BRIEF  # a Timer would call it once more to learn this
    agreement = {name: ours.check(results[name], results[""]) for name, ours in operation.ours.items()}
    del results
    n_threads = torch.get_num_threads()
    timers = {
        name: Timer("call()", globals={"call": function}, num_threads=n_threads)
        for name, function in functions.items()
    }
    rounds = [
        {
            name: repeated(function, 1) if slow[name] else timers[name].blocked_autorange(min_run_time=BRIEF)
            for name, function in functions.items()
        }
        for _ in range(repeats)
    ]
    times = {name: Measurement.merge(found[name] for found in rounds)[0] for name in functions}
    rows = []
    for name, ours in operation.ours.items():
        target = TARGETS.get((name, operation.varied), NO_SLOWER) if n_threads == 1 else float("nan")
        rows.append(
            {"operation": name, "size": operation.size, "reference": operation.reference_name}
            | pair(times[name], times[""], {"ours": memory[name], "reference": memory[""]})
            | {"target_ratio": target, "bound": ours.bound, "input_mib": operation.input_bytes / 2**20,
               "agreement": agreement[name][0], "agrees": agreement[name][1]}
        )  # fmt: skip
    return rows


def scaling_rows(spec: PerformanceSpec, *, label: str = "") -> list[dict]:
    """Median time of ours against size, one thread. References are left to `operation_rows`."""
    rows = []
    with set_torch_threads(1):
        for axis, position, operation in tqdm(list(scaling_operations(spec)), desc=label, leave=False):
            for name, ours in operation.ours.items():
                ours.function()
                rows.append({
                    "operation": name, "axis": axis, "position": position, "size": operation.size,
                    "ours_ms": 1e3 * repeated(ours.function, spec.repeats).median, "repeats": spec.repeats,
                })  # fmt: skip
    return rows


def pairs(record: Record) -> pd.DataFrame:
    """All pairs of a recorded run with its processor and versions: what performance.csv holds."""
    rows = pd.DataFrame([*record.metrics["operations"], record.metrics["step"]["row"]])
    versions = ", ".join(f"{name} {version}" for name, version in record.info["versions"].items())
    return rows.assign(machine=record.metrics["processor"], versions=versions)


def slower_than(record: Record, before: Record | None) -> list[str]:
    """Pairs whose ratio fell clearly below that of an earlier record, in words. A warning, not a test."""
    if before is None:
        return []
    both = pairs(record).merge(pairs(before), on=["operation", "size", "threads"], suffixes=("", "_before"))
    return [
        f"{row.operation}, {row.size}, {row.threads} thread(s): ratio {row.ratio:.3g}, "
        f"recorded {row.ratio_before:.3g}"
        for row in both[both["ratio"] < WARN_BELOW * both["ratio_before"]].itertuples()
    ]


def real_embedding_rows(
    model: nn.Module, dataset: Sequence, label_set: LabelSet, options: Mapping[str, Mapping], *,
    label: str = "",
) -> list[dict]:  # fmt: skip
    """Quality and time of clusterings of a trained network's embeddings inside true class masks.

    `options`: what `inference.predict_instances` takes, by the name of the row.
    """
    scores = {name: ThreatScore(label_set) for name in options}
    times: dict[str, list[float]] = {name: [] for name in options}
    model.eval()
    with set_torch_threads(1):
        for sample in one_by_one(dataset, label):
            with torch.inference_mode():
                embeddings = model(network_input(sample))[0].float()
            truth, masks = panoptic_truth(sample, label_set), torch.from_numpy(sample.semantic)
            for name, option in options.items():
                began = timer()
                found = predict_instances(embeddings, masks, label_set, **option)
                times[name].append(1e3 * (timer() - began))
                scores[name].update(*truth, *found)
    found = {name: threat_scores(score) for name, score in scores.items()}
    return [
        {"algorithm": name, "pooled threat score": score["pooled"],
         **{count: score[count] for count in ("tp", "fp", "fn")},
         "ms_per_image": statistics.median(times[name]), "n_images": len(dataset)}
        for name, score in found.items()
    ]  # fmt: skip


def rendering_rows(spec: PerformanceSpec) -> list[dict]:
    """Images a second of every style of the embedded city, written in its official format, by processes."""
    rows = []
    size = {"height": spec.render_height, "width": spec.render_width}
    for name, style in city.STYLES.items():
        for n_processes in spec.render_processes:
            with tempfile.TemporaryDirectory() as folder:
                write = functools.partial(
                    city.write_city, Path(folder), style, split="all" if name != "cityscapes" else "train",
                    n_images=spec.n_rendered, seed=spec.seed,
                    n_workers=n_processes, progress=False, **size,
                )  # fmt: skip
                rate = spec.n_rendered / measure_seconds(write)
            rows.append({
                "style": name, "size": "{height} x {width}".format(**size), "processes": n_processes,
                "images_per_s": rate, "n_images": spec.n_rendered,
            })  # fmt: skip
    return rows


def start_rows(repeats: int) -> list[dict]:
    """Seconds in fresh processes: imports, and what a notebook costs beside its runs (kernel, figure)."""
    rows = []
    for name, command in STARTS.items():
        run = functools.partial(subprocess.run, [sys.executable, *command], check=True, capture_output=True)
        rows.append({"command": name, "seconds": repeated(run, repeats).median, "repeats": repeats})
    return rows


def cost_rows(spec: ClusteringCostSpec, *, label: str = "") -> list[dict]:
    """One row per algorithm and size: time and memory of a call.

    Returns
    -------
    list of dict
        "algorithm", "axis" ("pixels" or "instances"), "pixels" and "instances" that were clustered, "ms"
        (median) and "ms_iqr" over `repeats` calls on one thread, "mib" (rise of the memory of the process
        during one call; NaN where the system does not tell).
    """
    rows = []
    with set_torch_threads(1):
        for axis, height, n_instances in tqdm(list(cost_sizes(spec)), desc=label, leave=False):
            labels = instance_map(height, 2 * height, n_instances, spec.seed)
            field = embedding_field(labels, spec.embedding_dim, spec.seed, mixed_borders=True)
            mask = labels > 0
            for algorithm in spec.algorithms:
                rows.append(
                    {"algorithm": algorithm, "axis": axis, "pixels": int(mask.sum()),
                     "instances": len(labels[mask].unique())}
                    | _cost(field, mask, algorithm, spec)
                )  # fmt: skip
    return rows


def cost_sizes(spec: ClusteringCostSpec) -> Iterator[tuple[str, int, int]]:
    """(axis, height, number of objects) of every input."""
    for height in spec.heights:
        yield "pixels", height, spec.n_instances[0]
    for n_instances in spec.n_instances:
        yield "instances", spec.heights[-2], n_instances


def _cost(field: Tensor, mask: Tensor, algorithm: str, spec: ClusteringCostSpec) -> dict[str, float]:
    options = {"min_cluster_size": 8} if algorithm == "hdbscan" else {}
    options |= {"bandwidth": bandwidth_of(spec.embedding_dim), "delta_dist": DELTA_DIST}

    def call() -> Tensor:
        return cluster(field, mask, algorithm=algorithm, **options)

    call()  # libraries take their buffers once
    _, mib = with_peak_memory(call)
    times = repeated(call, spec.repeats)
    return {"ms": 1e3 * times.median, "ms_iqr": 1e3 * times.iqr, "mib": mib}
