"""From an image to what the networks say about it: class probabilities and embeddings. No instances yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from panolib.data.photometry import network_input
from panolib.data.samples import Sample
from panolib.models.geometry import placement_of, upsample_to


@dataclass(frozen=True)
class Prediction:
    """Network outputs for one image: class probabilities [C, H, W] and embeddings [E, h, w].

    Raises FloatingPointError for probabilities that are not finite: of nan, too, one class is "the largest".
    """

    sample: Sample
    probabilities: Tensor | None
    embeddings: Tensor | None

    def __post_init__(self):
        if self.probabilities is not None and not torch.isfinite(self.probabilities.sum()):
            raise FloatingPointError(
                f"{self.sample.id}: the network's class probabilities hold nan, expected finite numbers"
            )

    @property
    def semantic(self) -> Tensor:
        return self.probabilities.argmax(0)


@torch.inference_mode()
def predict_image(
    semantic_model: nn.Module | None, instance_model: nn.Module | None, sample: Sample
) -> Prediction:
    """Outputs of the networks (in evaluation mode from here on) for one image, at its own size."""
    models = [model.eval() for model in (semantic_model, instance_model) if model is not None]
    image = network_input(sample).to(next(models[0].parameters()).device)
    probabilities = embeddings = None
    if semantic_model is not None:
        logits = semantic_model(image).float()
        probabilities = upsample_to(logits, image.shape[-2:], placement_of(semantic_model))[0].softmax(0)
    if instance_model is not None:
        embeddings = embed_images(instance_model, image)[0]
    return Prediction(sample, probabilities, embeddings)


def predict(
    semantic_model: nn.Module | None,
    instance_model: nn.Module | None,
    dataset: Sequence[Sample],
    *,
    label: str = "",
) -> Iterator[Prediction]:
    """`predict_image` of every image of a data set."""
    for sample in one_by_one(dataset, label):
        with torch.inference_mode():
            yield predict_image(semantic_model, instance_model, sample)


def one_by_one(dataset: Sequence[Sample], label: str = "") -> Iterator[Sample]:
    """The samples of a data set, under a progress bar if there is a label."""
    for index in tqdm(range(len(dataset)), desc=label or None, leave=False, disable=not label):
        yield dataset[index]


def predict_semantic(model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Class map of normalised images; leaves every weight, buffer and mode as it was.

    `image` float [B, 3, H, W] is on the model's device. Logits [B, C, h, w] are resized to `size` (height,
    width) bilinearly, then decided. Returns uint8 [B, *size].
    """
    with evaluating(model), torch.inference_mode():
        logits = model(image).float()
        logits = upsample_to(logits, size, placement_of(model), image_size=image.shape[-2:])
        return logits.argmax(1).to(torch.uint8)


def to_input_width(image: Tensor, width: int | None) -> Tensor:
    """Images [B, C, H, W] at the width (pixels) that a network sees, aspect ratio kept; None: unchanged."""
    if width is None or image.shape[-1] == width:
        return image
    height = max(1, round(image.shape[-2] * width / image.shape[-1]))
    return F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def embed_images(model: nn.Module, image: Tensor) -> Tensor:
    """Embeddings float32 [B, E, h, w] of whole normalised images [B, 3, H, W] at the network's scale.

    A network with an `input_width` sees them resized to it: objects then have the size that it was trained
    on. `predict_instances` brings instances back to the size of the semantic map.
    """
    return model(to_input_width(image, getattr(model, "input_width", None))).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
