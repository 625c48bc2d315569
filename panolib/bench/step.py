"""The semantic self-training step: time by stage and by size, and two ways to compute it side by side."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated
from unittest import mock

import numpy as np
import torch
from annotated_types import Ge
from tqdm import tqdm

from panolib.bench.cases import close
from panolib.config import Count
from panolib.data import photometry, views
from panolib.data.render import city
from panolib.lab.measuring import has_bf16, iqr, threads, with_peak_memory
from panolib.training import semantic
from panolib.training.semantic import Augmentation, SelfTrainingSpec
from panolib.training.setup import Compute, Optimiser, SemanticNetwork, build_semantic, memory_format

STAGES = {  # functions of a semantic self-training step, by what a reader calls them
    "images and their augmentation": (
        (semantic.LabelledBatches, "__call__"), (semantic.UnlabelledBatches, "__call__"),
    ),
    "crops and noise": ((views, "multi_view_crops"), (photometry, "photometric_noise")),
    "fusion": ((semantic, "fuse_views"),),
    "pseudo-labels": ((semantic, "semantic_pseudo_labels"), (semantic, "update_class_prior")),
    "losses": ((semantic, "self_training_loss"), (semantic, "cross_entropy")),
    "momentum update": ((semantic, "update_teacher"),),
}  # fmt: skip
ROUNDINGS = 3  # loss curves agree if they differ by no more than so many times what one rounding does


@dataclass(frozen=True)
class StepSpec:
    """The semantic self-training step that is timed, on images of the embedded city."""

    network: SemanticNetwork
    height: Count
    width: Count
    batch_size: Count
    n_target: Count
    n_views: Count
    iterations: Annotated[int, Ge(2)]  # the first one is not timed
    source_style: city.StyleName
    target_style: city.StyleName


def step_rows(spec, n_classes: int, *, bf16: bool | None = None) -> dict:
    """The step of a `bench.PerformanceSpec`: channels-last against contiguous float32; where its time goes.

    A network that is not safe in channels-last (`setup.memory_format`) is contiguous in both.

    `bf16`: ours computes in mixed precision; by default where the processor has instructions for it.

    Returns
    -------
    dict
        "row": like those of `operation_rows`; "stages": share of the step by stage, in percent;
        "images_per_s": source crops and target views a second; "mib": rise of the memory of the process.
    """
    step = spec.step
    inputs = _StepInputs.of(spec, step, n_classes)
    bf16 = has_bf16(torch.device("cpu")) if bf16 is None else bf16
    ways = {
        "ours": {"channels_last": True, "precision": "bf16-mixed" if bf16 else "32-true"},
        "reference": {"channels_last": False, "precision": "32-true"},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    with threads(1):
        for _ in range(max(1, spec.repeats // 2)):
            for name, way in ways.items():
                clock = _Clock()
                with _timed(stages, clock) if name == "ours" else contextlib.nullcontext():
                    run = functools.partial(inputs.run, clock, **way)
                    _, memory[name] = with_peak_memory(run, timed=True)
                times[name] += clock.durations[1:]
                losses[name] = clock.losses
        inputs.nudged().run(nudged := _Clock(), **ways["reference"])
    _, rounding = _apart(nudged.losses, losses["reference"])
    agreement, difference = _apart(losses["ours"], losses["reference"])
    medians = {name: statistics.median(found) for name, found in times.items()}
    total = sum(times["ours"])
    shares = {name: 100 * seconds / total for name, seconds in stages.items()}
    instructions = torch.backends.cpu.get_cpu_capability()
    share_of_networks = 100 - sum(shares.values())
    return {
        "row": {
            "operation": f"semantic self-training step, {inputs.layout()}" + ", bf16" * bf16,
            "size": f"{step.network.version} depth {step.network.depth} width {step.network.width}, "
            f"{step.n_target} x {step.n_views} views, {step.height} x {step.width}",
            "reference": "float32, contiguous",
            "ours_ms": 1e3 * medians["ours"],
            "ours_iqr_ms": 1e3 * iqr(times["ours"]),
            "reference_ms": 1e3 * medians["reference"],
            "reference_iqr_ms": 1e3 * iqr(times["reference"]),
            "ratio": medians["reference"] / medians["ours"],
            "target_ratio": 3.3,
            "sketch_ms": 13_400,
            "bound": f"{share_of_networks:.1f} % are the networks, with {instructions}"
            + ("" if bf16 else " and without the bf16 of the sketch's processor"),
            "ours_mib": memory["ours"],
            "reference_mib": memory["reference"],
            "repeats": len(times["ours"]),
            "reference_repeats": len(times["reference"]),
            "threads": 1,
            "agreement": f"loss curve {agreement}; {rounding:.0e} after one rounding of the start weights",
            "agrees": difference <= max(1e-2, ROUNDINGS * rounding),
        },
        "stages": shares | {"networks, optimiser": share_of_networks},
        "images_per_s": (step.batch_size + step.n_target * step.n_views) / medians["ours"],
        "mib": memory["ours"],
    }


def _apart(losses: Sequence[float], others: Sequence[float]) -> tuple[str, float]:
    """Largest difference of two loss curves, in words and as a number."""
    return close(losses, others, 0.0)[0], float(np.abs(np.subtract(losses, others)).max())


def step_scaling_rows(spec, n_classes: int, *, label: str = "") -> list[dict]:
    """Median time of the step against image size and against batch size, one thread, the faster layout."""
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
    def of(cls, spec, step: StepSpec, n_classes: int) -> _StepInputs:
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

    def layout(self) -> str:
        """What the network is trained in where channels-last is asked for, in words."""
        model = build_semantic(self.spec.network, self.n_classes)
        found = memory_format(replace(self.spec.compute, channels_last=True), model)
        return "channels-last" if found == torch.channels_last else "contiguous"

    def run(self, clock: _Clock, *, channels_last: bool, precision: str = "32-true") -> None:
        compute = replace(self.spec.compute, channels_last=channels_last, precision=precision)
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
