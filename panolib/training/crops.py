"""Batches of training crops: of labelled images, and of the target, drawn evenly or by rare classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from panolib.data import photometry, views
from panolib.data.samples import Sample
from panolib.training.specs import Augmentation, Renormalisation

UNIFORM = 0.25  # alpha of `rare_class_weights`, share of uniform sampling


@dataclass
class LabelledBatches:
    """Callable: iteration -> {"image" float [B, 3, h, w] normalised, and int64 label maps [B, h, w]}.

    `weights` are probabilities of the images, for example `rare_source_weights`; without, all have the same.
    """

    dataset: Sequence[Sample]
    batch_size: int
    augmentation: Augmentation
    maps: tuple[str, ...] = ("semantic",)
    renormalise: Renormalisation | None = None
    weights: Tensor | None = None  # [n_images]

    @record_function("images and their augmentation")
    def __call__(self, iteration: int) -> dict[str, Tensor]:
        if self.weights is None:
            indices = torch.randint(len(self.dataset), (self.batch_size,))
        else:
            indices = torch.multinomial(self.weights, self.batch_size, replacement=True)
        crops = []
        for index in indices.tolist():
            sample = self.dataset[index]
            crops.append(_crop(self, index, sample, {name: getattr(sample, name) for name in self.maps}))
        batch = _stacked(crops)
        return batch | {"image": photometry.normalise(batch["image"])}


@dataclass
class UnlabelledBatches:
    """Callable: iteration -> {"image" float [B, 3, h, w] in [0, 1]}; with weights, balanced over classes.

    `maps` are label maps of every image that ride along, int64 [B, h, w] each; they change no draw.
    """

    dataset: Sequence[Sample]
    batch_size: int
    augmentation: Augmentation
    class_weights: Tensor | None = None  # [C, n_images]; one row: the same for every draw
    maps: Sequence[Mapping[str, np.ndarray]] | None = None
    renormalise: Renormalisation | None = None

    @record_function("images and their augmentation")
    def __call__(self, iteration: int) -> dict[str, Tensor]:
        if self.class_weights is None:
            indices = torch.randint(len(self.dataset), (self.batch_size,)).tolist()
        else:
            first = iteration * self.batch_size
            indices = [draw_rare_class(self.class_weights, first + i) for i in range(self.batch_size)]
        maps = [{}] * len(self.dataset) if self.maps is None else self.maps
        return _stacked([_crop(self, index, self.dataset[index], maps[index]) for index in indices])


def clean_view(augmentation: Augmentation) -> Augmentation:
    """The same crop size without zoom or photometric change: how target images enter a batch."""
    return replace(augmentation, scale=(1.0, 1.0), jitter=0.0, jitter_probability=0.0, blur=None)


def _crop(
    batches: LabelledBatches | UnlabelledBatches, index: int, sample: Sample, maps: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """One random training view of a sample: "image" in [0, 1], and the label maps."""
    shape, colours = batches.augmentation, batches.renormalise
    image, maps = views.train_view(
        photometry.to_image(sample),
        {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in maps.items()},
        size=(shape.height, shape.width),
        scale=shape.scale,
        scale_of=shape.scale_of,
        hflip=shape.hflip,
        jitter=shape.jitter,
        jitter_probability=shape.jitter_probability,
        blur=shape.blur,
        recolour=None if colours is None else colours.recolour(batches.dataset.origin(index)),
    )
    return {"image": image, **maps}


def _stacked(crops: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Crops as one batch, label maps as int64."""
    batch = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
    return {name: values if name == "image" else values.long() for name, values in batch.items()}


def rare_class_weights(ratios: Tensor) -> Tensor:
    """Probability of drawing each image for each class, float64 [C, n_images]; rows sum to 1.

    w[c, i] = (1 - alpha) * r[i, c] + alpha / n_images, with r scaled to sum to 1 over the images; uniform for
    a class that is never predicted.

    Parameters
    ----------
    ratios : Tensor [n_images, C]
        Predicted share of pixels of each class in each image.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097 (importance sampling).
    """
    share = ratios.double().T  # [C, n_images]
    total, n_images = share.sum(1, keepdim=True), len(ratios)
    share = torch.where(total > 0, share / torch.where(total > 0, total, 1), 1 / n_images)
    return (1 - UNIFORM) * share + UNIFORM / n_images


def draw_rare_class(weights: Tensor, index: int) -> int:
    """Number of an image, drawn by `rare_class_weights` [C, n_images] for the class whose turn it is.

    `index`: running number of the sample; the class is `index` modulo C.
    """
    return int(torch.multinomial(weights[index % len(weights)], 1))


def answered_weights(answered: Sequence[bool], share: float) -> Tensor:
    """Probability of drawing each image, float64 [1, n_images], of which answered ones together have `share`.

    Uniform where all have an answer, or none has.
    """
    known = torch.tensor(answered)
    if known.all() or not known.any():
        share = known.double().mean().item()
    weights = torch.where(known, share / known.sum().clamp(min=1), (1 - share) / (~known).sum().clamp(min=1))
    return weights.double()[None]


@torch.inference_mode()
def predicted_class_ratios(model: nn.Module, target: Sequence[Sample], n_classes: int) -> Tensor:
    """float [n_images, C]: share of pixels that a network in evaluation mode gives each class, per image."""
    device, ratios = next(model.parameters()).device, []
    for sample in target:
        labels = model(photometry.network_input(sample).to(device)).argmax(1)
        ratios.append(torch.bincount(labels.flatten(), minlength=n_classes).float() / labels.numel())
    return torch.stack(ratios).cpu()


def class_pixels(source: Sequence[Sample], n_classes: int) -> Tensor:
    """int64 [n_images, C]: pixels of each class in the labels of each image."""
    counts = [np.bincount(sample.semantic.ravel(), minlength=n_classes)[:n_classes] for sample in source]
    return torch.from_numpy(np.stack(counts))


def rare_source_weights(pixels: Tensor, *, temperature: float) -> Tensor:
    """Probability of drawing each labelled image where a class is drawn first, then an image that shows it.

    P(c) ~ exp((1 - f[c]) / temperature), where f is the share of the pixels of all images, for classes that
    some image shows; all images that show c are alike.

    Parameters
    ----------
    pixels : Tensor [n_images, C]
        Pixels of each class in each image.
    temperature : float
        > 0; the higher, the more alike are the classes. DAFormer: 0.01.

    Returns
    -------
    float64 Tensor [n_images]
        Sums to 1. ValueError where no image shows any class.

    References
    ----------
    Hoyer et al. 2022, arXiv:2111.14887 (DAFormer). It wants a number of pixels of the class, in the image
    and, redrawn up to ten times, in the crop; here one in the image is enough.
    """
    if not pixels.any():
        raise ValueError(f"{len(pixels)} labelled images show no class, expected one pixel at least")
    shown = pixels > 0
    share = pixels.sum(0).double() / pixels.sum()
    of_class = ((1 - share) / temperature).masked_fill(~shown.any(0), -torch.inf).softmax(0)
    return (shown / shown.sum(0).clamp(min=1)).double() @ of_class


def ego_rows(target: Sequence[Sample], share: float) -> list[dict[str, np.ndarray]]:
    """{"ego": uint8 [H, W]} of every image: 1 where the own car is, in the lowest `share` of its rows.

    References
    ----------
    Hoyer et al. 2022 (DAFormer) and Saha et al. 2023 (EDAPS) leave out the lowest 120 of 512 rows.
    """
    found = []
    for height, width in (sample.image.shape[:2] for sample in target):
        inside = np.arange(height) >= height - round(share * height)
        found.append({"ego": np.broadcast_to(inside[:, None].astype(np.uint8), (height, width))})
    return found
