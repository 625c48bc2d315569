"""Pixels of one domain pasted into crops of the other, with their labels: classes of the source into views of
the target, instances of the target into crops of the source.

Classes go into the target because their labels are true: a view then holds pixels whose label is not guessed,
also of classes of which the teacher is never sure. The other way round, guessed classes would enter the only
loss with true labels. Instances go into the source because there everything else is labelled: in an image of
the target a pasted instance has unlabelled objects beside it. They do bring guesses into the loss of the
source, hence only sure ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from panolib.data.images import resize_labels
from panolib.labels import VOID


def half_of_classes(labels: Tensor, n_classes: int) -> Tensor:
    """Labels of a random half of the classes that each map [N, H, W] of train ids shows; `VOID` elsewhere.

    Half of the classes of a map are drawn, rounded down; every map has draws of its own, from torch's global
    generator.

    References
    ----------
    Olsson et al. 2021, arXiv:2007.07936 (ClassMix); Tranheden et al. 2021, arXiv:2007.08702 (DACS, which
    rounds up).
    """
    slot = labels.masked_fill(labels == VOID, n_classes).flatten(1)                          # [N, P]
    shown = torch.zeros(len(labels), n_classes + 1, dtype=torch.bool, device=labels.device)
    shown = shown.scatter_(1, slot, True)[:, :n_classes]
    draws = torch.rand(shown.shape).to(labels.device).masked_fill(~shown, 2.0)               # those come last
    drawn = draws.argsort(1).argsort(1) < shown.sum(1, keepdim=True) // 2
    kept = F.pad(drawn, (0, 1)).gather(1, slot).view_as(labels)
    return torch.where(kept, labels, VOID)


def paste_classes(images: Tensor, source: Mapping[str, Tensor], n_classes: int) -> tuple[Tensor, Tensor]:
    """Half of the classes of source crops on images [N, 3, H, W] of the target.

    `source`: "image" float [B, 3, H, W], as normalised as the images, and "semantic" int64 [B, H, W]. Crop b
    goes on images b, b + B, ... Returns the images, and the labels int64 [N, H, W] of the pasted pixels,
    `VOID` elsewhere.
    """
    turn = torch.arange(len(images)) % len(source["image"])
    labels = half_of_classes(source["semantic"][turn], n_classes)
    return torch.where((labels != VOID)[:, None], source["image"][turn], images), labels


def paste_labels(pasted: Tensor, pseudo_labels: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo-labels and confidence [N, h, w] with the labels that `paste_classes` gave, at confidence 1.

    `pasted` int64 [N, H, W] may be larger than the pseudo-labels of the same images.
    """
    pasted = resize_labels(pasted, pseudo_labels.shape[-2:])
    inside = pasted != VOID
    return torch.where(inside, pasted, pseudo_labels), confidence.masked_fill(inside, 1.0)


def sure_instances(instances: Tensor, confidence: Tensor, least: float) -> Tensor:
    """Instances int64 [B, h, w] whose mean confidence (float [B, h, w]) is `least` or more; 0 elsewhere.

    References
    ----------
    Mansour et al. 2025, arXiv:2404.03799 (LIDAPS): masks with a score of 0.75 and more.
    """
    n = int(instances.max()) + 1
    slot = (instances + n * torch.arange(len(instances), device=instances.device)[:, None, None]).flatten()
    total = torch.bincount(slot, confidence.flatten().double(), minlength=n * len(instances))
    sure = total / torch.bincount(slot, minlength=len(total)).clamp(min=1) >= least
    return torch.where(sure[slot].view_as(instances), instances, 0)


def paste_instances(
    source: Mapping[str, Tensor], images: Tensor, instances: Tensor, semantic: Tensor
) -> dict[str, Tensor]:
    """Instances of the target on labelled source crops, over whatever is there; a batch like `source`.

    A pasted instance has an id that no other has in its crop.

    Parameters
    ----------
    source : mapping of "image" float Tensor [N, 3, H, W] and "semantic", "instance", "crowd" int64 [N, H, W]
    images : float Tensor [B, 3, H, W]
        Target crops, as normalised as those of the source. Crop b goes on source crops b, b + B, ...
    instances, semantic : int64 Tensor [B, h, w]
        Instances to paste, 0 where none, and their classes.
    """
    turn, size = torch.arange(len(source["image"])) % len(images), source["image"].shape[-2:]
    instances, semantic = (resize_labels(maps, size)[turn] for maps in (instances, semantic))
    inside = instances > 0
    last = source["instance"].flatten(1).amax(1)[:, None, None]
    return {
        "image": torch.where(inside[:, None], images[turn], source["image"]),
        "semantic": torch.where(inside, semantic, source["semantic"]),
        "instance": torch.where(inside, instances + last, source["instance"]),
        "crowd": source["crowd"].masked_fill(inside, 0),
    }
