"""The semantic self-training step: time by stage and by size, and two ways to compute it side by side."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, schedule
from tqdm import tqdm

from panolib.bench.cases import TARGETS, close, pair
from panolib.bench.specs import StepSpec
from panolib.data.render import city
from panolib.lab.measuring import (
    has_bf16,
    measurement,
    set_torch_threads,
    timer,
    with_peak_memory,
)
from panolib.labels import CITYSCAPES
from panolib.training import semantic
from panolib.training.batch_norm import train_mode
from panolib.training.run_specs import SelfTrainingSpec
from panolib.training.setup import build_semantic, lay_out, memory_format
from panolib.training.specs import Augmentation, Compute, Optimiser

STAGES = (  # what training calls them for the profiler (`torch.profiler.record_function`)
    "images and their augmentation", "crops and noise", "fusion", "pseudo-labels", "losses",
    "momentum update",
)  # fmt: skip
STEP = "semantic self-training step"
ROUNDINGS = 3  # loss curves agree if they differ by no more than so many times what one rounding does


def step_rows(spec, *, bf16: bool | None = None) -> dict:
    """The step of a `PerformanceSpec`: channels-last against contiguous float32; where its time goes.

    A network that is not safe in channels-last (`setup.memory_format`) is contiguous in both.

    `bf16`: ours computes in mixed precision; by default where the processor has instructions for it.

    Returns
    -------
    dict
        "row": like those of `operation_rows`; "stages": share of the step by stage, in percent;
        "images_per_s": source crops and target views a second; "mib": rise of the memory of the process.
    """
    step = spec.step
    training = _training(spec, step)
    bf16 = has_bf16(torch.device("cpu")) if bf16 is None else bf16
    ways = {
        "ours": {"channels_last": True, "precision": "bf16-mixed" if bf16 else "32-true"},
        "reference": {"channels_last": False, "precision": "32-true"},
    }
    durations: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    with set_torch_threads(1):
        for _ in range(max(1, spec.repeats // 2)):
            for name, way in ways.items():
                run = functools.partial(training.run, clock := Clock(), **way)
                _, memory[name] = with_peak_memory(run, timed=True)
                durations[name] += clock.durations[1:]
                losses[name] = clock.losses
        training.nudged().run(nudged := Clock(), **ways["reference"])
        stages = _stages(training, **ways["ours"])
    times = {name: measurement(found) for name, found in durations.items()}
    apart, rounding = (
        float(np.abs(np.subtract(found, losses["reference"])).max())
        for found in (losses["ours"], nudged.losses)
    )
    words, _ = close(losses["ours"], losses["reference"], 0.0)
    instructions = torch.backends.cpu.get_cpu_capability()
    bound = f"{stages['networks, optimiser']:.1f} % are the networks, with {instructions}"
    row = {
        "operation": f"{STEP}, {training.layout()}" + ", bf16" * bf16,
        "size": f"{step.network.version} {step.network.encoder.name}, "
        f"{step.n_target} x {step.n_views} views, {step.height} x {step.width}",
        "reference": "float32, contiguous",
        **pair(times["ours"], times["reference"], memory),
        "target_ratio": TARGETS[STEP, None],
        "bound": bound if bf16 else f"{bound} without bf16",
        "threads": 1,
        "agreement": f"loss curve {words}; {rounding:.0e} after one rounding of the start weights",
        "agrees": apart <= max(1e-2, ROUNDINGS * rounding),
    }
    n_images = step.batch_size + step.n_target * step.n_views
    rate = n_images / times["ours"].median
    return {"row": row, "stages": stages, "images_per_s": rate, "mib": memory["ours"]}


def _stages(training: _Training, **way) -> dict[str, float]:
    """Share of the step by stage in percent, without the first iteration; of losses the forward pass only."""
    window = schedule(wait=0, warmup=1, active=training.spec.iterations - 1, repeat=1)
    with profile(activities=[ProfilerActivity.CPU], schedule=window) as profiler:
        training.run(Clock(profiler.step), **way)
    total = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    shares = {name: 100 * total[name] / total["ProfilerStep*"] for name in STAGES}
    return shares | {"networks, optimiser": 100 - sum(shares.values())}


def step_scaling_rows(spec, *, label: str = "") -> list[dict]:
    """Median time of the step against image size and against batch size, one thread, the faster layout."""
    step = spec.scaling_step
    cases = [("pixels of an image", h * w, replace(step, height=h, width=w)) for h, w in spec.step_sizes]
    cases += [
        ("images in a batch", n + n * step.n_views, replace(step, batch_size=n, n_target=n))
        for n in spec.step_batches
    ]
    rows = []
    with set_torch_threads(1):
        for axis, position, chosen in tqdm(cases, desc=label, leave=False):
            clock = Clock()
            _training(spec, chosen).run(clock, channels_last=True)
            times = clock.durations[1:]
            rows.append({
                "operation": STEP, "axis": axis, "position": position,
                "ours_ms": 1e3 * measurement(times).median, "repeats": len(times),
            })  # fmt: skip
    return rows


def step_overhead(spec) -> dict[str, float]:
    """What a step of the small network takes beside the student's own passes over the same batch.

    These are forward and backward of the source crops and of the target views, with the mean of the logits
    for a loss. The step has the teacher's forward pass, data, losses and the optimiser besides. Both take
    turns; on one thread.

    Returns
    -------
    dict
        "step_ms" and "passes_ms" (median processor time), "ratio" of the two, "steps" that were timed.
    """
    step = replace(spec.scaling_step, iterations=1 + 3 * spec.repeats)
    training = _training(spec, step)
    compute = replace(training.spec.compute, channels_last=True)
    student = lay_out(build_semantic(step.network, CITYSCAPES.n_classes), compute)
    train_mode(student, training.spec.batch_norm)
    batches = [torch.rand(n, 3, step.height, step.width)
               for n in (step.batch_size, step.n_target * step.n_views)]  # fmt: skip
    passes_s = []

    def passes() -> None:
        began = time.process_time()
        student.zero_grad(set_to_none=True)
        for images in batches:
            student(images).mean().backward()
        passes_s.append(time.process_time() - began)

    with set_torch_threads(1):
        training.run(clock := Clock(passes), channels_last=True)
    step_ms, passes_ms = (
        1e3 * measurement(found[1:]).median for found in (clock.cpu_durations, passes_s)
    )
    return {"step_ms": step_ms, "passes_ms": passes_ms, "ratio": step_ms / passes_ms,
            "steps": len(passes_s) - 1}  # fmt: skip


@dataclass(frozen=True)
class _Training:
    """All that `semantic.self_train` needs for some iterations on rendered images."""

    spec: SelfTrainingSpec
    start: dict
    images: list[list]  # of the source, of the target

    def run(self, clock: Clock, *, channels_last: bool, precision: str = "32-true") -> None:
        compute = replace(self.spec.compute, channels_last=channels_last, precision=precision)
        spec = replace(self.spec, compute=compute)
        semantic.self_train(spec, clock, self.start, *self.images, CITYSCAPES.n_classes)

    def nudged(self) -> _Training:
        """The same with every start weight at the next float: what rounding alone does to a loss curve."""
        upwards = {
            name: value.nextafter(torch.full_like(value, torch.inf)) if value.is_floating_point() else value
            for name, value in self.start.items()
        }
        return replace(self, start=upwards)

    def layout(self) -> str:
        """What the network is trained in where channels-last is asked for, in words."""
        model = build_semantic(self.spec.network, CITYSCAPES.n_classes)
        found = memory_format(replace(self.spec.compute, channels_last=True), model)
        return "channels-last" if found == torch.channels_last else "contiguous"


def _training(spec, step: StepSpec) -> _Training:
    """The step with the settings of SAC, on four images of each style."""
    size = {"height": step.height, "width": step.width}
    images = [
        [city.render(style, seed=spec.seed, index=i, **size) for i in range(4)]
        for style in (step.source_style, step.target_style)
    ]
    training = SelfTrainingSpec(
        label_set=CITYSCAPES.name, source="", target="", validation="", network=step.network,
        optimiser=Optimiser("sgd", 2.5e-4, 0.0005, 0.9, 1.0, "poly", 0),
        augmentation=sac_augmentation(**size),
        iterations=step.iterations, batch_size=step.batch_size, n_target=step.n_target,
        n_views=step.n_views, zoom=(0.5, 1.0), noise_blur=(0.1, 1.0), fusion_stride=2, target_weight=1.0,
        focal_exponent=3.0, threshold_scale=0.75, prior_scale=0.001, prior_momentum=0.99,
        minimum_threshold=0.2, ema_decay=0.99, ema_interval=1, batch_norm="target",
        rare_class_sampling=False, compute=Compute("cpu", "32-true", 0, False), seed=spec.seed,
    )  # fmt: skip
    torch.manual_seed(spec.seed)
    return _Training(training, build_semantic(step.network, CITYSCAPES.n_classes).state_dict(), images)


def sac_augmentation(height: int, width: int) -> Augmentation:
    """Crops as SAC augments them."""
    return Augmentation(
        height, width, scale=(0.5, 1.0), scale_of="window", hflip=0.5, jitter=0.5, jitter_probability=0.5,
        blur=(0.05, 0.8),
    )  # fmt: skip


class Clock:
    """A job that only keeps the losses and the time of every iteration; `after` is called after each."""

    start = 0

    def __init__(self, after: Callable[[], None] = lambda: None):
        self.losses: list[float] = []
        self.durations: list[float] = []
        self.cpu_durations: list[float] = []
        self.after = after

    def resume(self) -> None:
        return None

    def progress(self, start: int, stop: int) -> Iterator[int]:
        for iteration in range(start, stop):
            began, cpu_began = timer(), time.process_time()
            yield iteration
            self.durations.append(timer() - began)
            self.cpu_durations.append(time.process_time() - cpu_began)
            self.after()

    def log(self, iteration: int, **values) -> None:
        if "loss" in values:
            self.losses.append(float(values["loss"].detach()))

    def checkpoint(self, *_) -> None:
        pass
