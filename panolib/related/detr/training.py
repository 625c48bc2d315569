"""Training the network with queries on labelled images: one loop, resumable bit for bit.

Augmentation changes colours only: labels stay valid, since no pixel moves (methods section 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panolib.config import Count, NonNegativePair, Positive, Share, Size, spec
from panolib.data import photometry
from panolib.data.loading import iteration_seed
from panolib.data.samples import Sample, resize_sample
from panolib.inference.panoptic import panoptic_truth
from panolib.labels import LABEL_SETS, LabelSet
from panolib.related.detr.network import ENCODER, DetrNetwork, build_detr
from panolib.related.detr.targets import detr_target
from panolib.training.loop import Job, begin, iterate, restore
from panolib.training.run_specs import RunSpec
from panolib.training.setup import build_optimizer, lay_out
from panolib.training.specs import Optimiser

CHANGES = ("brightness", "contrast", "saturation", "quality")  # of the colour policy
TERMS = ("ce", "mask", "dice")  # of the loss, weighted, after "loss_"; earlier layers have "_0", "_1"


@spec
class ColourPolicy:
    """Which share of the images is changed, and how much. The slides give no numbers."""

    probability: Share
    factors: NonNegativePair  # of brightness, contrast and saturation; 1 changes nothing
    quality: tuple[int, int]  # of JPEG compression, 1 .. 100; both ends may be drawn

    def __post_init__(self):
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"quality is {self.quality}, expected 1 <= low <= high <= 100")


@spec(kw_only=True)
class DetrSpec(RunSpec):
    """Supervised training on labelled images of `source`, whole and in their own geometry."""

    source: str
    n_images: Count | None  # a random part of them, the larger ones holding the smaller; None: all
    size: Size | None  # (height, width) to which images are resized; None: their own
    network: DetrNetwork
    optimiser: Optimiser
    clip: Positive  # norm of the gradient
    colours: ColourPolicy | None
    mask_stride: Count  # masks are learned at 1 / stride of the image size; 4 is that of the predicted ones
    iterations: Count
    batch_size: Count


@dataclass
class DetrBatches:
    """Callable: iteration -> {"image" float [B, 3, h, w] normalised, "labels": list of B targets}.

    Every image comes once an epoch, in an order of its own each epoch.
    """

    dataset: Sequence[Sample]
    label_set: LabelSet
    indices: Sequence[int]  # the images to learn from
    batch_size: int
    size: tuple[int, int] | None
    mask_stride: int
    seed: int  # of the order
    colours: ColourPolicy | None = None

    def __call__(self, iteration: int) -> dict:
        images, labels = [], []
        for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
            sample = self.dataset[self.indices[epoch_position(position, len(self.indices), self.seed)]]
            if self.size is not None:
                sample = resize_sample(sample, self.size)
            image = photometry.to_image(sample)
            images.append(image if self.colours is None else change_colours(image, self.colours))
            target = detr_target(*panoptic_truth(sample, self.label_set))
            labels.append(target | {"masks": coarse_masks(target["masks"], self.mask_stride)})
        return {"image": photometry.normalise(torch.stack(images)), "labels": labels}


def change_colours(image: Tensor, policy: ColourPolicy) -> Tensor:
    """Change one of `CHANGES` of a uint8 image [3, H, W], drawn at random with its strength; or nothing.

    Draws from torch's global generator, as many numbers whatever is chosen. The same tensor where nothing is
    changed.
    """
    applied, choice, strength = torch.rand(3).tolist()
    if applied >= policy.probability:
        return image
    change = CHANGES[min(int(choice * len(CHANGES)), len(CHANGES) - 1)]
    if change == "quality":
        low, high = policy.quality
        return adjust(image, change, low + min(int(strength * (high - low + 1)), high - low))
    low, high = policy.factors
    return adjust(image, change, low + strength * (high - low))


def adjust(image: Tensor, change: str, strength: float) -> Tensor:
    """A uint8 image [3, H, W] with its brightness, contrast or saturation times a factor.

    With the `change` "quality": after JPEG compression with a quality of 1 .. 100.
    """
    if change != "quality":
        from torchvision.transforms.v2 import functional  # slow to import, and only for those who train

        return getattr(functional, f"adjust_{change}")(image, strength)
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[..., ::-1])  # OpenCV has blue first
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, strength])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(decoded))


def chosen_images(n_all: int, n_wanted: int | None, seed: int) -> list[int]:
    """Positions of `n_wanted` of `n_all` images in random order; a smaller choice is part of a larger one.

    Raises ValueError if there are not as many.
    """
    if n_wanted is not None and not 1 <= n_wanted <= n_all:
        raise ValueError(f"{n_wanted} training images wanted, {n_all} are there")
    return _permutation(n_all, seed, 0, "training images")[:n_wanted]


def epoch_position(position: int, n_images: int, seed: int) -> int:
    """Which image comes at a position of an endless stream of epochs, each a permutation of its own."""
    epoch, place = divmod(position, n_images)
    return _permutation(n_images, seed, epoch, "epoch")[place]


def _permutation(n: int, *seed) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(iteration_seed(*seed))).tolist()


def coarse_masks(masks: Tensor, stride: int) -> Tensor:
    """float [T, H, W] -> [T, ceil(H / stride), ceil(W / stride)]: share of each cell that is covered."""
    return F.avg_pool2d(masks[:, None], stride, ceil_mode=True)[:, 0]


def loss_terms(loss_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms of the last decoder layer by name, and the sum of the earlier ones as "auxiliary".

    Their sum is the library's loss.
    """
    terms = {name: loss_dict[f"loss_{name}"] for name in TERMS}
    earlier = [value for name, value in loss_dict.items() if name.removeprefix("loss_") not in TERMS]
    return terms | {"auxiliary": sum(earlier, terms["ce"].new_zeros(()))}


def train_detr(spec: DetrSpec, job: Job, source: Sequence[Sample]) -> nn.Module:
    """Train with the library's matcher and loss; returns the network."""
    label_set = LABEL_SETS[spec.label_set]
    fabric, state = begin(spec, job)
    model = lay_out(build_detr(spec.network, label_set.n_classes), spec.compute)
    optimizer = build_optimizer(spec.optimiser, model, encoder=ENCODER)
    model, optimizer = fabric.setup(model, optimizer)
    parts = {"model": model, "optimizer": optimizer}
    restore(parts, state)
    indices = chosen_images(len(source), spec.n_images, spec.seed)
    stream = DetrBatches(
        source, label_set, indices, spec.batch_size, spec.size, spec.mask_stride, spec.seed, spec.colours
    )

    model.train()
    for iteration, batch in iterate(spec, job, fabric, parts, stream):
        outputs = model(pixel_values=batch["image"], labels=batch["labels"])
        fabric.backward(outputs.loss)
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()
        job.log(iteration, loss=outputs.loss, **loss_terms(outputs.loss_dict))
    return model
