"""A simulated person: chooses by true IoU, is wrong now and then, outlines objects for seconds each.

The only part of this folder that sees labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from skimage.segmentation import relabel_sequential

from panolib.active.queries import overlap
from panolib.data.loading import iteration_seed
from panolib.data.samples import Sample
from panolib.objectness.candidates import truth_on_grid


def true_overlaps(sample: Sample, candidates: Sequence[np.ndarray]) -> list[float]:
    """`queries.overlap` of each segmentation [H, W] of a labelled image with its true objects.

    Void pixels and groups count for nothing.
    """
    _, _, ignored = truth_on_grid(sample, sample.semantic.shape)
    truth = true_instances(sample)
    return [overlap(relabel_sequential(np.where(ignored, 0, labels))[0], truth) for labels in candidates]


def choice(overlaps: Sequence[float], *, wrong: float, seed: int, image: str) -> int:
    """Number of the segmentation that is chosen of two: the one of higher overlap, the first of equal ones.

    With the chance `wrong` it is the other one. Whether a person is wrong is drawn for every image by itself:
    who is wrong in 20 % of the cases is wrong wherever one is who is wrong in 10 %.
    """
    better = int(overlaps[1] > overlaps[0])
    drawn = np.random.default_rng(iteration_seed(seed, 0, image)).random()
    return 1 - better if drawn < wrong else better


def outlined(
    samples: Iterable[Sample], seconds: float, seconds_per_object: float
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, true instances int64 [H, W]) of the images whose objects are outlined within some seconds.

    Images are taken in their order, each as a whole, the first one in any case.
    """
    spent = 0.0
    for number, sample in enumerate(samples):
        instances = true_instances(sample)
        spent += seconds_per_object * int(instances.max(initial=0))
        if number > 0 and spent > seconds:
            return
        yield sample.id, instances


def true_instances(sample: Sample) -> np.ndarray:
    """int64 [H, W]: objects 1 .. K of a labelled image without groups and void."""
    _, instances, ignored = truth_on_grid(sample, sample.semantic.shape)
    return relabel_sequential(np.where(ignored, 0, instances))[0]
