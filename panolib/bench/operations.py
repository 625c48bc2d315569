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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import nn
from tqdm import tqdm

from panolib.bench.cases import Operation, scaling_operations, table_operations
from panolib.bench.step import StepSpec
from panolib.config import Count, Counts, Natural, Seed, Size
from panolib.data import photometry
from panolib.data.render import city
from panolib.inference.panoptic import panoptic_truth, predict_instances
from panolib.lab.measuring import iqr, measure_seconds, threads, with_peak_memory
from panolib.labels import LabelSet
from panolib.metrics.threat_score import ThreatScore
from panolib.scoring.evaluate import threat_scores
from panolib.training.semantic import to_image

MANY = 20  # calls of a quick operation in a row, and rounds of a quick pair
BRIEF = 0.2  # seconds that such a row of calls takes at most
EMPTY_NOTEBOOK = """
import nbformat, nbclient
from panolib.lab.notebook import OwnKernel
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
nbclient.NotebookClient(notebook, kernel_manager_class=OwnKernel).execute()
"""
FIGURE = """
import io
from panolib.report import figures
figures.use_style()
rows = [{"axis": "pixels", "operation": "o", "position": 1, "ours_ms": 1.0, "repeats": 1}]
figures.scaling_plot(rows + [row | {"axis": "instances"} for row in rows]).savefig(io.BytesIO())
"""


@dataclass(frozen=True)
class PerformanceSpec:
    """Sizes of the inputs, and how often each pair is timed."""

    label_set: str
    validation: str  # images of the training domain, for clusterings of real embeddings
    n_images: Count
    min_size: Natural
    height: Count  # of embedding and label maps, pixels
    width: Count
    panoptic_height: Count  # of the maps that panoptic and semantic scores compare, pixels
    panoptic_width: Count
    embedding_dims: Counts
    n_instances: Counts
    batch_size: Count
    repeats: Count
    threads: Counts
    step: StepSpec
    scaling_step: StepSpec
    step_sizes: Annotated[tuple[Size, ...], MinLen(1)]  # height and width, pixels
    step_batches: Counts  # source crops, and as many target images
    render_height: Count
    render_width: Count
    n_rendered: Count
    render_processes: Counts
    seed: Seed


# ---- pairs -----------------------------------------------------------------------------------------------


def operation_rows(spec: PerformanceSpec, *, label: str = "") -> list[dict]:
    """One row per operation, size and number of threads: times, memory, ratio, agreement."""
    rows = []
    for n_threads in spec.threads:
        with threads(n_threads):
            rates = machine_rates()
            operations = list(table_operations(spec))
            for operation in tqdm(operations, desc=f"{label}{n_threads} thread(s)", leave=False):
                floor_ms = max(
                    operation.least_mb / rates["gb_per_s"], operation.least_mflop / rates["gflop_per_s"]
                )
                for row in measure(operation, spec.repeats):
                    rows.append(row | {"floor_ms": floor_ms, "threads": n_threads})
    return rows


def machine_rates(size: int = 2048) -> dict[str, float]:
    """What the processor reaches with the current number of threads: the floor under every operation.

    Returns
    -------
    dict
        "gb_per_s": bytes read and written by a copy of memory far larger than the caches;
        "gflop_per_s": a float32 product of square matrices. The best of five.
    """
    values, copy = torch.ones(2**25), torch.empty(2**25)
    factor, product = torch.ones(size, size), torch.empty(size, size)
    copied = min(measure_seconds(lambda: copy.copy_(values)) for _ in range(5))
    multiplied = min(measure_seconds(lambda: torch.mm(factor, factor, out=product)) for _ in range(5))
    return {
        "gb_per_s": 2e-9 * values.numel() * values.element_size() / copied,
        "gflop_per_s": 2e-9 * size**3 / multiplied,
    }


def measure(operation: Operation, repeats: int) -> list[dict]:
    """Rows of one operation: memory and agreement first, then alternating times.

    `repeats` rounds at least; of quick pairs as many as fit into a second, up to `MANY`. A round calls what
    is quick several times, so that a median does not rest on a few calls with the caches of the other one.
    """
    functions = {"": operation.reference} | {name: ours.function for name, ours in operation.ours.items()}
    memory, results = {}, {}
    for name, function in functions.items():
        if name:
            function()  # so that libraries have their buffers; the references take too long for that
        results[name], memory[name] = with_peak_memory(function)
    agreement = {name: ours.check(results[name], results[""]) for name, ours in operation.ours.items()}
    del results
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for n_rounds in range(max(repeats, MANY)):
        if n_rounds >= repeats and time.perf_counter() - began > 1:
            break
        for name, function in functions.items():
            times[name] += [1e3 * seconds for seconds in _in_a_row(function)]
    reference_ms = statistics.median(times[""])
    return [
        {
            "operation": name,
            "size": operation.size,
            "reference": operation.reference_name,
            "ours_ms": statistics.median(times[name]),
            "ours_iqr_ms": iqr(times[name]),
            "reference_ms": reference_ms,
            "reference_iqr_ms": iqr(times[""]),
            "ratio": reference_ms / statistics.median(times[name]),
            "target_ratio": ours.target,
            "sketch_ms": operation.sketch_ms,
            "bound": ours.bound,
            "ours_mib": memory[name],
            "reference_mib": memory[""],
            "input_mib": operation.input_mib,
            "repeats": len(times[name]),
            "reference_repeats": len(times[""]),
            "agreement": agreement[name][0],
            "agrees": agreement[name][1],
        }
        for name, ours in operation.ours.items()
    ]


def _in_a_row(function: Callable) -> list[float]:
    """Seconds of one call or, of a quick function, of as many as `BRIEF` and `MANY` allow."""
    seconds = [measure_seconds(function)]
    while sum(seconds) < BRIEF and len(seconds) < MANY:
        seconds.append(measure_seconds(function))
    return seconds


def scaling_rows(spec: PerformanceSpec, *, label: str = "") -> list[dict]:
    """Median time of ours against size, one thread. References are left to `operation_rows`."""
    rows = []
    with threads(1):
        for axis, position, operation in tqdm(list(scaling_operations(spec)), desc=label, leave=False):
            for name, ours in operation.ours.items():
                times = [measure_seconds(ours.function) for _ in range(spec.repeats + 1)][1:]
                rows.append({
                    "operation": name, "axis": axis, "position": position, "size": operation.size,
                    "ours_ms": 1e3 * statistics.median(times), "repeats": spec.repeats,
                })  # fmt: skip
    return rows


# ---- embeddings of our own networks ----------------------------------------------------------------------


def real_embedding_rows(
    model: nn.Module,
    dataset: Sequence,
    label_set: LabelSet,
    options: Mapping[str, Mapping],
    *,
    label: str = "",
) -> list[dict]:
    """Quality and time of clusterings of a trained network's embeddings inside true class masks.

    Parameters
    ----------
    options : mapping of str to mapping
        What `inference.predict_instances` takes, by the name of the row.
    """
    scores = {name: ThreatScore(label_set) for name in options}
    times: dict[str, list[float]] = {name: [] for name in options}
    model.eval()
    with threads(1):
        for sample in tqdm(dataset, desc=label, leave=False):
            with torch.inference_mode():
                embeddings = model(photometry.normalise(to_image(sample)[None]))[0].float()
            truth, masks = panoptic_truth(sample, label_set), torch.from_numpy(sample.semantic)
            for name, option in options.items():
                began = time.perf_counter()
                found = predict_instances(embeddings, masks, label_set, **option)
                times[name].append(1e3 * (time.perf_counter() - began))
                scores[name].update(*truth, *found)
    rows = []
    for name, score in scores.items():
        found = threat_scores(score)
        rows.append({
            "algorithm": name, "pooled threat score": found["pooled"],
            **{count: found[count] for count in ("tp", "fp", "fn")},
            "ms_per_image": statistics.median(times[name]), "n_images": len(dataset),
        })  # fmt: skip
    return rows


# ---- rendering, importing --------------------------------------------------------------------------------


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
    """Seconds in fresh processes.

    Until torch, the library and its command line are there; and what a notebook costs beside its runs: a
    kernel for an empty one, and drawing and saving a figure.
    """
    commands = {
        "import torch": ["-c", "import torch"],
        "import panolib.study.kinds": ["-c", "import panolib.study.kinds"],
        "python -m panolib --help": ["-m", "panolib", "--help"],
        "execute an empty notebook": ["-c", EMPTY_NOTEBOOK],
        "import, draw and save a figure": ["-c", FIGURE],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            run = functools.partial(
                subprocess.run, [sys.executable, *command], check=True, capture_output=True
            )
            times[name].append(measure_seconds(run))
    return [
        {"command": name, "seconds": statistics.median(found), "repeats": repeats}
        for name, found in times.items()
    ]
