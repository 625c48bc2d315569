"""How long networks take for one image, in several ways to run them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from panolib.config import Count, NonNegative, spec
from panolib.lab.measuring import has_bf16, measure_seconds
from panolib.models.complexity import n_operations, n_parameters
from panolib.training.run_specs import RunSpec
from panolib.training.setup import build_semantic
from panolib.training.specs import SemanticNetwork

WAYS = ("contiguous", "channels-last", "bf16", "compiled")


@spec(kw_only=True)
class SpeedSpec(RunSpec):
    """Latency of one image. Weights do not matter for it, so networks here are not trained."""

    height: Count
    width: Count
    networks: dict[str, SemanticNetwork]
    compiled: tuple[str, ...]  # networks that are compiled; it takes a minute or more each on a small machine
    own: dict[str, SemanticNetwork]  # those that this profile trains, at the size of its images
    own_height: Count
    own_width: Count
    repeats: Count
    limit_s: NonNegative  # no further repeat of a network after it; every way is timed at least once

    def __post_init__(self):
        unknown = sorted(set(self.compiled) - set(self.networks))
        if unknown:
            raise ValueError(f"compiled: expected names of {list(self.networks)}, found {unknown}")


@dataclass(frozen=True)
class Case:
    """One network on one image in one way."""

    network: str
    model: nn.Module
    image: Tensor
    way: str
    compiles: bool = False


def speed_rows(spec: SpeedSpec, n_classes: int, device: torch.device, *, label: str = "") -> list[dict]:
    """Rows of all `networks`, the ways of each by turns; and of all `own` ones, by turns with each other."""

    def cases(name: str, network: SemanticNetwork, height: int, width: int, ways: tuple[str, ...]):
        torch.manual_seed(spec.seed)
        model = build_semantic(network, n_classes, pretrained=False).to(device).eval()
        image = torch.randn(1, 3, height, width).to(device)
        return [Case(name, model, image, way, name in spec.compiled) for way in ways]

    layout = "channels-last" if spec.compute.channels_last else "contiguous"
    rows = []
    for name, network in tqdm(spec.networks.items(), desc=label, leave=False, disable=not label):
        rows += timed_rows(cases(name, network, spec.height, spec.width, WAYS), device, spec)
    own = [
        case
        for name, network in spec.own.items()
        for case in cases(name, network, spec.own_height, spec.own_width, (layout,))
    ]
    return rows + timed_rows(own, device, spec)


def timed_rows(cases: Sequence[Case], device: torch.device, spec: SpeedSpec) -> list[dict]:
    """Latency of some cases, timed by turns.

    The rows have "network", "way", "height", "width", "parameters", "multiply_adds", "n" (timed calls),
    "median_ms", "p95_ms", "images_per_s" (one image at a time), "note": why a way is not timed, with NaN
    beside it.
    """
    rows, timed = [], []
    for case in cases:
        shape = tuple(case.image.shape)
        rows.append({
            "network": case.network, "way": case.way, "height": shape[-2], "width": shape[-1],
            "parameters": n_parameters(case.model),
            "multiply_adds": n_operations(case.model, shape, convention="multiply-adds"),
            "n": 0, "median_ms": np.nan, "p95_ms": np.nan, "images_per_s": np.nan, "note": "",
        })  # fmt: skip
        try:
            call = _call(case, device)
            measure_seconds(call)  # libraries prepare themselves, and compilers compile
            timed.append((rows[-1], call, []))
        except Exception as error:  # a way that this machine does not have is a row, not the end of the run
            rows[-1]["note"] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    began = time.perf_counter()
    for repeat in range(spec.repeats):
        if repeat >= 1 and time.perf_counter() - began > spec.limit_s:
            break
        for _, call, times in timed:
            times.append(1e3 * measure_seconds(call))
    for row, _, times in timed:
        median, late = np.percentile(times, (50, 95)).tolist()
        row |= {"n": len(times), "median_ms": median, "p95_ms": late, "images_per_s": 1e3 / median}
    return rows


def _call(case: Case, device: torch.device) -> Callable[[], Tensor]:
    """One forward pass. Raises RuntimeError with the reason where a way is not for this machine."""
    model, image, way = case.model, case.image, case.way
    if way == "contiguous":
        return torch.no_grad()(lambda: model(image))
    layout = {"memory_format": torch.channels_last}
    fast, last = copy.deepcopy(model).to(**layout), image.contiguous(**layout)
    if way == "bf16":
        if not has_bf16(device):
            raise RuntimeError("this processor has no bf16 instructions")
        fast, last = fast.to(torch.bfloat16), last.to(torch.bfloat16)
    if way == "compiled":
        if not case.compiles:
            raise RuntimeError("not compiled in this profile, to save time")
        fast = torch.compile(fast)
    return torch.no_grad()(lambda: fast(last))
