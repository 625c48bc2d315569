"""Networks to use outside the study: one file that turns an image into a panoptic map.

A safetensors file holds the weights of a panoptic run in half precision, and, as JSON in its metadata, all
else that a prediction needs: networks, classes, clustering and merge.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from panolib.clustering.algorithms import Algorithm
from panolib.config import (
    Count,
    Natural,
    NonNegative,
    NonNegativePair,
    Positive,
    Share,
    from_mapping,
    spec,
    to_plain,
)
from panolib.data.any_image import read_page
from panolib.data.domains import Sources
from panolib.data.errors import DataError
from panolib.data.intensity import Intensity
from panolib.data.samples import Sample
from panolib.errors import UserError, one_line
from panolib.inference.panoptic import MERGE_RULES, PanopticPrediction, predict_panoptic
from panolib.inference.views import EmbeddedInViews, SeenInViews, Views, embedded_in, seen_in
from panolib.lab.files import write
from panolib.lab.pack import halved, single
from panolib.lab.run import Run, with_parents
from panolib.lab.store import Store
from panolib.labels import LABEL_SETS, LabelSet
from panolib.study.parents import cleanup_of, wanted_weights
from panolib.training.setup import build_instance, build_semantic, build_shared
from panolib.training.specs import InstanceNetwork, SemanticNetwork, SharedNetworks

ENTRY = "panolib"  # of the metadata
LARGE, SCALE = 2**14, "/scale"  # values of a kernel that `eight_bits` rounds; ends the names of scales
_ENCODER, _TWIN = "shared.semantic.encoder.", "shared.instance.encoder."  # one under two names, written once


class NoWeights(UserError, ValueError):
    """A file without networks of this project, or a run that has none to package."""


@spec
class Recipe:
    """What a file says beside its tensors.

    `run` and `key` name the record that the networks were scored in. `intensity`, `limits`: what becomes 0
    and 255 (`data.intensity`); None where images of 8 bits are as they are. `width`: of the images, pixels,
    to which others are resized; None where they keep their own scale. `diameter` (median, pixels) or
    `pixel_size` of what the networks learned from, and `share`, the largest of a labelled image that was
    things, if they are known. `bandwidth` and `delta_dist` are in units of the embeddings, `min_size` in
    pixels of the embedding grid, `opening` in pixels. `views`: those of an image over which class
    probabilities and embeddings are averaged; None for the image alone.
    """

    format: Literal[2]
    run: str
    key: str
    label_set: LabelSet
    intensity: Intensity | None
    limits: NonNegativePair | None
    diameter: Positive | None
    pixel_size: Positive | None
    width: Count | None
    semantic: SemanticNetwork
    instance: InstanceNetwork
    shared: bool  # one encoder
    algorithm: Algorithm
    bandwidth: Positive
    delta_dist: NonNegative
    min_size: Natural
    rule: Literal[MERGE_RULES]
    opening: Natural
    share: Share | None = None
    views: Views | None = None

    def __post_init__(self):
        label_set, n = self.label_set, len(self.label_set.classes)
        if n < 2 or {len(label_set.colours), len(label_set.file_ids)} != {n}:
            raise ValueError(f"label_set: expected a colour and a file id for each of {n} classes")
        if unknown := [name for name in label_set.things if name not in label_set.classes]:
            raise ValueError(f"label_set: things {unknown}, expected names of {list(label_set.classes)}")


@dataclass(frozen=True)
class PanopticNetworks:
    """Two networks in evaluation mode, or two heads of one, and how their outputs become a panoptic map."""

    recipe: Recipe
    semantic: nn.Module
    instance: nn.Module

    @property
    def label_set(self) -> LabelSet:
        return self.recipe.label_set

    def seeing(self, views: Views | None) -> PanopticNetworks:
        """The same networks seeing other views of every image than their file says; None: as it says."""
        if views is None:
            return self
        semantic, instance = (
            network.network if isinstance(network, SeenInViews | EmbeddedInViews) else network
            for network in (self.semantic, self.instance)
        )
        recipe = replace(self.recipe, views=views)
        return PanopticNetworks(recipe, seen_in(semantic, views), embedded_in(instance, views))

    def predict(self, sample: Sample) -> PanopticPrediction:
        """The panoptic map of one image; labels of the sample are not looked at."""
        recipe = self.recipe
        return predict_panoptic(
            self.semantic, self.instance, sample, self.label_set, rule=recipe.rule, opening=recipe.opening,
            algorithm=recipe.algorithm, bandwidth=recipe.bandwidth, delta_dist=recipe.delta_dist,
            min_size=recipe.min_size,
        )  # fmt: skip


def write_package(
    store: Store, sources: Mapping[str, Sources], run: Run, path: Path, *, small: bool = False
) -> Recipe:
    """Write the networks that a panoptic run scored, with its settings, to a safetensors file.

    `sources`: the data sets by domain; where intensities are those of a whole set its images are read, and
    where images keep their own scale those with labels, if they are on this machine: `predict --diameter`
    needs them to have been there.
    `small`: large kernels have 8 bits instead of 16 (`eight_bits`).

    Raises
    ------
    NoWeights
        For a run of another kind, and for one without the picture that tells how large its images are.
    """
    semantic, instance = packaged_runs(run)
    scores, networks, data = run.spec, semantic.spec.network, sources[run.domain]
    shared = isinstance(networks, SharedNetworks)
    parents = dict(run.parents)
    chosen = store.get(parents["clustering"]).metrics
    cleanup = cleanup_of(run, lambda role: store.get(parents[role]))
    known = data.preprocessing()
    if measured := measured_objects(data, run):
        sizes, shares = (np.concatenate(each) for each in zip(*measured.values()))
        known["share"] = math.ceil(1e5 * shares.max()) / 1e5
        known["diameter"] = known["diameter"] or round(float(np.median(sizes)), 1)
    values = dict(
        format=2,
        run=run.name,
        key=run.key,
        label_set=LABEL_SETS[scores.label_set],
        **known,
        width=None if data.own_scale else _image_width(store, run),
        semantic=networks.semantic if shared else networks,
        instance=networks.instance if shared else instance.spec.network,
        shared=shared,
        algorithm="mean_shift_plus",  # that of the scores
        bandwidth=chosen["bandwidth"],
        delta_dist=chosen["delta_dist"],
        min_size=cleanup["min_size"],
        rule=cleanup["merge_rules"][0],
        opening=cleanup["opening"],
        views=scores.views,
    )
    recipe = from_mapping(Recipe, to_plain(values), where=f"recipe of {run.name}")
    states = {"shared": semantic} if shared else {"semantic": semantic, "instance": instance}
    tensors = {
        f"{part}.{name}": tensor.contiguous()
        for part, parent in states.items()
        for name, tensor in wanted_weights(parent, store.final_state(parent), scores.scored).items()
        if not f"{part}.{name}".startswith(_TWIN)
    }
    text = json.dumps(to_plain(recipe), sort_keys=True)
    write(path, save(halved(eight_bits(tensors) if small else tensors), metadata={ENTRY: text}))
    return recipe


def learned_from(run: Run) -> list[str]:
    """Names of the data sets that a run learned from."""
    return [name for field in ("source", "target") if (name := getattr(run.spec, field, None))]


def measured_objects(data: Sources, run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`Sources.object_sizes` of the labelled data sets that a run and its parents learned from, by name.

    Of those that are on this machine and hold objects; {} where images have no scale of their own.
    """
    if not data.own_scale:
        return {}
    learned = {name for each in with_parents([run]) for name in learned_from(each)}
    found = {}
    for name in sorted(name for name in learned if not name.endswith(":unlabelled")):
        with contextlib.suppress(OSError, DataError):  # not here, not to be drawn here, or changed since
            found[name] = data.object_sizes(name)
    return {name: (sizes, shares) for name, (sizes, shares) in found.items() if len(sizes)}


def eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels of `LARGE` values or more as int8, and under "<name>/scale" a scale for each output channel."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= LARGE:
            scale = tensor.abs().flatten(1).amax(1).clamp(min=1e-12) / 127
            found[name] = (tensor / _by_channel(scale, tensor)).round().to(torch.int8)
            found[name + SCALE] = scale.float()
    return found


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `eight_bits` was given, but for rounding."""
    scales = {name.removesuffix(SCALE): tensor for name, tensor in tensors.items() if name.endswith(SCALE)}
    return {
        name: tensor.float() * _by_channel(scales[name], tensor) if name in scales else tensor
        for name, tensor in tensors.items() if not name.endswith(SCALE)
    }  # fmt: skip


def _by_channel(scale: Tensor, kernel: Tensor) -> Tensor:
    """A value for each output channel, in the shape that multiplies a kernel."""
    return scale.view(-1, *[1] * (kernel.ndim - 1))


def _image_width(store: Store, run: Run) -> int:
    """Width of the images that a run was scored on, pixels: of its first recorded picture."""
    picture = store.get(run).samples.get("00-image")
    if picture is None:
        raise NoWeights(f"run {run.name!r} has no picture of an image, expected n_samples of 1 or more")
    return read_page(picture).shape[1]


def packaged_runs(run: Run) -> tuple[Run, Run]:
    """The runs that trained the semantic and the instance network of a panoptic run, one run if they share.

    Raises NoWeights for a run of another kind, and for a shared network beside another one.
    """
    if run.kind != "panoptic":
        raise NoWeights(f"run {run.name!r} is of kind {run.kind!r}, expected a panoptic run")
    parents = dict(run.parents)
    networks = parents["semantic"], parents["instance"]
    if networks[0].key != networks[1].key and any(
        isinstance(network.spec.network, SharedNetworks) for network in networks
    ):
        raise NoWeights(f"run {run.name!r} takes masks and embeddings from two networks, expected one shared")
    return networks


def read_package(path: Path | str) -> PanopticNetworks:
    """The networks of a file that `write_package` wrote, on the CPU, in single precision and evaluation mode.

    Raises
    ------
    FileNotFoundError
    NoWeights
        Naming the file, what was found and what was expected.
    """
    path = Path(path)
    expected = "expected a safetensors file that `python -m panolib weights` wrote"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is not there, {expected}")
    try:
        with safe_open(os.fspath(path), "pt") as file:
            text = (file.metadata() or {}).get(ENTRY)
            tensors = _whole(single({name: file.get_tensor(name) for name in file.keys()}))
    except SafetensorError as error:
        raise NoWeights(f"{path}: {expected}, found one that cannot be read ({error})") from error
    if text is None:
        raise NoWeights(f"{path}: {expected}, found no entry {ENTRY!r} in its metadata")
    try:
        recipe = from_mapping(Recipe, json.loads(text), where=f"{path}: {ENTRY}")
    except ValueError as error:  # also a ProfileError, and of JSON
        raise NoWeights(f"{path}: {expected}; {error}") from error
    n_classes = recipe.label_set.n_classes
    if recipe.shared:
        whole = build_shared(SharedNetworks(recipe.semantic, recipe.instance), n_classes, pretrained=False)
        semantic, instance, parts = whole.semantic, whole.instance, nn.ModuleDict({"shared": whole})
        encoder = {name: tensor for name, tensor in tensors.items() if name.startswith(_ENCODER)}
        tensors |= {_TWIN + name.removeprefix(_ENCODER): tensor for name, tensor in encoder.items()}
    else:
        semantic = build_semantic(recipe.semantic, n_classes, pretrained=False)
        instance = build_instance(recipe.instance, pretrained=False)
        parts = nn.ModuleDict({"semantic": semantic, "instance": instance})
    try:
        parts.load_state_dict(tensors)
    except RuntimeError as error:
        found = f"found weights that do not fit ({one_line(error, most=300)})"
        raise NoWeights(f"{path}: {expected}, {found}") from error
    parts.eval().requires_grad_(False)
    return PanopticNetworks(recipe, semantic, instance).seeing(recipe.views)
