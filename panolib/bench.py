"""Time, memory and agreement of the core operations beside what people use today, on the same input.

Ours and the reference take turns in one process, so that a busy machine slows both; the claim is the ratio
of the medians, absolute times are context. A row says how the results agree, and whether that is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from panolib import provenance
from panolib.bench_cases import Operation, close, scaling_operations, table_operations
from panolib.data import city, views
from panolib.evaluate import threat_scores
from panolib.inference import panoptic_truth, predict_instances
from panolib.labels import LabelSet
from panolib.metrics.instance import ThreatScore
from panolib.training import semantic
from panolib.training.semantic import Augmentation, SelfTrainingSpec, to_image
from panolib.training.setup import Compute, Optimiser, SemanticNetwork, build_semantic

STAGES = {  # functions of a semantic self-training step, by what a reader calls them
    "images and their augmentation": (
        (semantic.LabelledBatches, "__call__"), (semantic.UnlabelledBatches, "__call__"),
    ),
    "crops and noise": ((views, "multi_view_crops"), (views, "photometric_noise")),
    "fusion": ((semantic, "fuse_views"),),
    "pseudo-labels": ((semantic, "semantic_pseudo_labels"), (semantic, "update_class_prior")),
    "losses": ((semantic, "self_training_loss"), (semantic, "cross_entropy")),
    "momentum update": ((semantic, "update_teacher"),),
}  # fmt: skip

ROUNDINGS = 3  # loss curves agree if they differ by no more than so many times what one rounding does
EMPTY_NOTEBOOK = """
import nbformat, nbclient
nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])).execute()
"""
FIGURE = """
import io
from panolib import figures
figures.use_style()
rows = [{"axis": "pixels", "operation": "o", "position": 1, "ours_ms": 1.0, "repeats": 1}]
figures.scaling_plot(rows + [row | {"axis": "instances"} for row in rows]).savefig(io.BytesIO())
"""


@dataclass(frozen=True)
class StepSpec:
    """The semantic self-training step that is timed, on images of the embedded city."""

    network: SemanticNetwork
    height: int
    width: int
    batch_size: int
    n_target: int
    n_views: int
    iterations: int  # the first one is not timed
    source_style: str
    target_style: str


@dataclass(frozen=True)
class PerformanceSpec:
    """Sizes of the inputs, and how often each pair is timed."""

    label_set: str
    validation: str  # images of the training domain, for clusterings of real embeddings
    n_images: int
    min_size: int
    height: int  # of embedding and label maps, pixels
    width: int
    panoptic_height: int  # of the maps that panoptic and semantic scores compare, pixels
    panoptic_width: int
    embedding_dims: tuple[int, ...]
    n_instances: tuple[int, ...]
    batch_size: int
    repeats: int
    threads: tuple[int, ...]
    step: StepSpec
    scaling_step: StepSpec
    step_sizes: tuple[tuple[int, int], ...]  # height and width, pixels
    step_batches: tuple[int, ...]  # source crops, and as many target images
    render_height: int
    render_width: int
    n_rendered: int
    render_processes: tuple[int, ...]
    seed: int


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
    """Rows of one operation: memory and agreement first, then alternating times."""
    functions = {"": operation.reference} | {name: ours.function for name, ours in operation.ours.items()}
    memory, results = {}, {}
    for name, function in functions.items():
        if name:
            function()  # so that libraries have their buffers; the references take too long for that
        results[name], memory[name] = with_peak_memory(function)
    agreement = {name: ours.check(results[name], results[""]) for name, ours in operation.ours.items()}
    del results
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(1e3 * measure_seconds(function))
    reference_ms = statistics.median(times[""])
    return [
        {
            "operation": name,
            "size": operation.size,
            "reference": operation.reference_name,
            "ours_ms": statistics.median(times[name]),
            "ours_iqr_ms": _iqr(times[name]),
            "reference_ms": reference_ms,
            "reference_iqr_ms": _iqr(times[""]),
            "ratio": reference_ms / statistics.median(times[name]),
            "target_ratio": ours.target,
            "ours_mib": memory[name],
            "reference_mib": memory[""],
            "input_mib": operation.input_mib,
            "repeats": repeats,
            "agreement": agreement[name][0],
            "agrees": agreement[name][1],
        }
        for name, ours in operation.ours.items()
    ]


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
                embeddings = model(views.normalise(to_image(sample)[None]))[0].float()
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


# ---- the self-training step ------------------------------------------------------------------------------


def step_rows(spec: PerformanceSpec, n_classes: int) -> dict:
    """The semantic self-training step in float32: channels-last against contiguous, and where its time goes.

    Returns
    -------
    dict
        "row": like those of `operation_rows`; "stages": share of the step by stage, in percent;
        "images_per_s": source crops and target views a second; "mib": rise of the memory of the process.
    """
    step = spec.step
    inputs = _StepInputs.of(spec, step, n_classes)
    layouts = {"ours": True, "reference": False}
    times: dict[str, list[float]] = {name: [] for name in layouts}
    losses: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    with threads(1):
        for _ in range(max(1, spec.repeats // 2)):
            for name, channels_last in layouts.items():
                clock = _Clock()
                with _timed(stages, clock) if name == "ours" else contextlib.nullcontext():
                    run = functools.partial(inputs.run, clock, channels_last=channels_last)
                    _, memory[name] = with_peak_memory(run)
                times[name] += clock.durations[1:]
                losses[name] = clock.losses
        inputs.nudged().run(nudged := _Clock(), channels_last=False)
    _, rounding = _apart(nudged.losses, losses["reference"])
    agreement, difference = _apart(losses["ours"], losses["reference"])
    medians = {name: statistics.median(found) for name, found in times.items()}
    total = sum(times["ours"])
    shares = {name: 100 * seconds / total for name, seconds in stages.items()}
    return {
        "row": {
            "operation": "semantic self-training step, channels-last",
            "size": f"{step.network.version} depth {step.network.depth} width {step.network.width}, "
            f"{step.n_target} x {step.n_views} views, {step.height} x {step.width}",
            "reference": "float32, contiguous",
            "ours_ms": 1e3 * medians["ours"],
            "ours_iqr_ms": 1e3 * _iqr(times["ours"]),
            "reference_ms": 1e3 * medians["reference"],
            "reference_iqr_ms": 1e3 * _iqr(times["reference"]),
            "ratio": medians["reference"] / medians["ours"],
            "target_ratio": 3.3,
            "ours_mib": memory["ours"],
            "reference_mib": memory["reference"],
            "repeats": len(times["ours"]),
            "threads": 1,
            "agreement": f"loss curve {agreement}; {rounding:.0e} after one rounding of the start weights",
            "agrees": difference <= max(1e-2, ROUNDINGS * rounding),
        },
        "stages": shares | {"networks, optimiser": 100 - sum(shares.values())},
        "images_per_s": (step.batch_size + step.n_target * step.n_views) / medians["ours"],
        "mib": memory["ours"],
    }


def _apart(losses: Sequence[float], others: Sequence[float]) -> tuple[str, float]:
    """Largest difference of two loss curves, in words and as a number."""
    return close(losses, others, 0.0)[0], float(np.abs(np.subtract(losses, others)).max())


def step_scaling_rows(spec: PerformanceSpec, n_classes: int, *, label: str = "") -> list[dict]:
    """Median time of the step against image size and against batch size, one thread, channels-last."""
    step = spec.scaling_step
    cases = [("pixels of an image", h * w, replace(step, height=h, width=w)) for h, w in spec.step_sizes]
    cases += [
        ("images in a batch", n + n * step.n_views, replace(step, batch_size=n, n_target=n))
        for n in spec.step_batches
    ]
    rows = []
    with threads(1):
        for axis, position, chosen in tqdm(cases, desc=label, leave=False):
            clock = _Clock()
            _StepInputs.of(spec, chosen, n_classes).run(clock, channels_last=True)
            rows.append({
                "operation": "semantic self-training step", "axis": axis, "position": position,
                "ours_ms": 1e3 * statistics.median(clock.durations[1:]),
                "repeats": len(clock.durations) - 1,
            })  # fmt: skip
    return rows


@dataclass(frozen=True)
class _StepInputs:
    """All that `semantic.self_train` needs for some iterations on rendered images."""

    spec: SelfTrainingSpec
    start: dict
    source: list
    target: list
    n_classes: int

    @classmethod
    def of(cls, spec: PerformanceSpec, step: StepSpec, n_classes: int) -> _StepInputs:
        source, target = (
            [city.render(style, seed=spec.seed, index=i, height=step.height, width=step.width)
             for i in range(4)]
            for style in (step.source_style, step.target_style)
        )  # fmt: skip
        training = SelfTrainingSpec(
            label_set=spec.label_set, source="", target="", validation="", network=step.network,
            optimiser=Optimiser("sgd", 2.5e-4, 0.0005, 0.9, 1.0, "poly", 0),
            augmentation=Augmentation(
                step.height, step.width, (0.5, 1.0), "window", 0.5, 0.5, 0.5, (0.05, 0.8)
            ),
            iterations=step.iterations, batch_size=step.batch_size, n_target=step.n_target,
            n_views=step.n_views, zoom=(0.5, 1.0), noise_blur=(0.1, 1.0), fusion_stride=2, target_weight=1.0,
            focal_exponent=3.0, threshold_scale=0.75, prior_scale=0.001, prior_momentum=0.99,
            minimum_threshold=0.2, ema_decay=0.99, ema_interval=1, batch_norm="target",
            rare_class_sampling=False, compute=Compute("cpu", "32-true", 0, False), seed=spec.seed,
        )  # fmt: skip
        torch.manual_seed(spec.seed)
        start = build_semantic(step.network, n_classes).state_dict()
        return cls(training, start, source, target, n_classes)

    def nudged(self) -> _StepInputs:
        """The same with every start weight at the next float: what rounding alone does to a loss curve."""
        upwards = {
            name: value.nextafter(torch.full_like(value, torch.inf)) if value.is_floating_point() else value
            for name, value in self.start.items()
        }
        return replace(self, start=upwards)

    def run(self, clock: _Clock, *, channels_last: bool) -> None:
        compute = replace(self.spec.compute, channels_last=channels_last)
        spec = replace(self.spec, compute=compute)
        semantic.self_train(spec, clock, self.start, self.source, self.target, self.n_classes)


class _Clock:
    """A job that only keeps the losses and the time of every iteration."""

    start = 0

    def __init__(self):
        self.losses: list[float] = []
        self.durations: list[float] = []

    def resume(self) -> None:
        return None

    def progress(self, start: int, stop: int) -> Iterator[int]:
        for iteration in range(start, stop):
            began = time.perf_counter()
            yield iteration
            self.durations.append(time.perf_counter() - began)

    def log(self, iteration: int, **values) -> None:
        self.losses.append(float(values["loss"].detach()))

    def checkpoint(self, *_) -> None:
        pass


@contextlib.contextmanager
def _timed(stages: dict[str, float], clock: _Clock) -> Iterator[None]:
    """Add the time spent in the functions of `STAGES`, from the second iteration on."""

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **options):
            began = time.perf_counter()
            result = function(*args, **options)
            if clock.durations:
                stages[name] += time.perf_counter() - began
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name, functions in STAGES.items():
            for module, attribute in functions:
                function = timed(name, getattr(module, attribute))
                stack.enter_context(mock.patch.object(module, attribute, function))
        yield


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
        "import panolib.kinds": ["-c", "import panolib.kinds"],
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


# ---- measuring -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _iqr(values: Sequence[float]) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)


def with_peak_memory(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and how far the memory of the process rose above where it began, in MiB.

    NaN where the system does not tell.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
    if not provenance.reset_peak_memory():
        return function(), float("nan")
    before = provenance.process_memory("VmRSS")
    result = function()
    return result, max(0.0, provenance.process_memory("VmHWM") - before)
