"""How long networks take for one image, in several ways to run them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from panolib.models.complexity import n_operations, n_parameters
from panolib.training.setup import Compute, SemanticNetwork, build_semantic

WAYS = ("contiguous", "channels-last", "bf16", "compiled")


@dataclass(frozen=True)
class SpeedSpec:
    """Latency of one image. Weights do not matter for it, so networks here are not trained."""

    label_set: str
    height: int
    width: int
    networks: dict[str, SemanticNetwork]
    compiled: tuple[str, ...]  # networks that are compiled; it takes a minute or more each on a small machine
    own: dict[str, SemanticNetwork]  # those that this profile trains, at the size of its images
    own_height: int
    own_width: int
    repeats: int
    limit_s: float  # stop repeating a network after this time; every way is timed once at least, after a call before
    compute: Compute
    seed: int


def speed_rows(spec: SpeedSpec, n_classes: int, device: torch.device, *, label: str = "") -> list[dict]:
    """Rows of all `networks`, and of all `own` ones in the layout of the profile; see `network_rows`."""
    layout = "channels-last" if spec.compute.channels_last else "contiguous"
    cases = [(name, network, spec.height, spec.width, WAYS) for name, network in spec.networks.items()]
    cases += [(name, net, spec.own_height, spec.own_width, (layout,)) for name, net in spec.own.items()]
    rows = []
    for name, network, height, width, ways in tqdm(cases, desc=label, leave=False, disable=not label):
        torch.manual_seed(spec.seed)
        model, image = build_semantic(network, n_classes), torch.randn(1, 3, height, width)
        compiles = name in spec.compiled
        rows += network_rows(name, model, image, device, spec, compiles=compiles, ways=ways)
    return rows


def network_rows(
    name: str,
    model: nn.Module,
    image: Tensor,
    device: torch.device,
    spec: SpeedSpec,
    *,
    compiles: bool = False,
    ways: tuple[str, ...] = WAYS,
) -> list[dict]:
    """Latency of a network in each way, timed by turns.

    Returns
    -------
    list of dict
        "network", "way", "height", "width", "parameters", "multiply_adds", "n" (timed calls), "median_ms",
        "p95_ms", "images_per_s" (one image at a time), "note": why a way is not timed, with NaN beside it.
    """
    facts = {
        "height": image.shape[-2], "width": image.shape[-1], "parameters": n_parameters(model),
        "multiply_adds": n_operations(model, tuple(image.shape), convention="multiply-adds"),
    }  # fmt: skip
    model, image = model.to(device).eval(), image.to(device)
    calls, notes = {}, {}
    for way in ways:
        try:
            calls[way] = _call(model, image, device, way, compiles)
            _seconds(calls[way], device)  # libraries prepare themselves, and compilers compile
        except Exception as error:  # a way that this machine does not have is a row, not the end of the run
            calls.pop(way, None)
            notes[way] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    times: dict[str, list[float]] = {way: [] for way in calls}
    began = time.perf_counter()
    for repeat in range(spec.repeats):
        if repeat >= 1 and time.perf_counter() - began > spec.limit_s:
            break
        for way, call in calls.items():
            times[way].append(1e3 * _seconds(call, device))
    return [
        {"network": name, "way": way} | facts | _latency(times.get(way, [])) | {"note": notes.get(way, "")}
        for way in ways
    ]


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; without them it is emulated, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _call(
    model: nn.Module, image: Tensor, device: torch.device, way: str, compiles: bool
) -> Callable[[], Tensor]:
    """One forward pass. Raises RuntimeError with the reason where a way is not for this machine."""
    if way == "contiguous":
        return lambda: model(image)
    layout = {"memory_format": torch.channels_last}
    fast, last = copy.deepcopy(model).to(**layout), image.contiguous(**layout)
    if way == "bf16":
        if not has_bf16(device):
            raise RuntimeError("this processor has no bf16 instructions")
        fast, last = fast.to(torch.bfloat16), last.to(torch.bfloat16)
    if way == "compiled":
        if not compiles:
            raise RuntimeError("not compiled in this profile, to save time")
        fast = torch.compile(fast)
    return lambda: fast(last)


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Time of one call; a GPU has then finished."""
    began = time.perf_counter()
    with torch.no_grad():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _latency(times: list[float]) -> Mapping[str, float]:
    if not times:
        nothing = float("nan")
        return {"n": 0, "median_ms": nothing, "p95_ms": nothing, "images_per_s": nothing}
    median, late = np.percentile(times, (50, 95)).tolist()
    return {"n": len(times), "median_ms": median, "p95_ms": late, "images_per_s": 1e3 / median}
