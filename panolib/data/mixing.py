"""The MIX source, SYNTHIA plus chosen GTA5 frames, and the source share of a batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from panolib.data.samples import ImageSet, Sample


def class_presence(dataset: ImageSet, *, n_workers: int = 1, progress: bool = False) -> np.ndarray:
    """bool [images, classes]: which classes the labels of each image show, one pixel being enough.

    Only labels are read, at the size of their files, by `n_workers` threads. Raises ValueError for a data set
    that was opened without labels.
    """

    def classes_of(index: int) -> np.ndarray:
        semantic = dataset.semantic(index)
        if semantic is None:
            raise ValueError(f"{dataset.name}: {dataset.ids[index]} has no labels, expected them")
        return np.bincount(semantic.ravel(), minlength=256)[: dataset.label_set.n_classes] > 0

    with ThreadPoolExecutor(n_workers) as pool:
        try:
            found = pool.map(classes_of, range(len(dataset)))
            bar = tqdm(found, total=len(dataset), desc=f"classes of {dataset.name}", disable=not progress)
            return np.array(list(bar), bool).reshape(len(dataset), dataset.label_set.n_classes)
        except BaseException:  # a damaged label, or stopped: the others need not be read
            pool.shutdown(cancel_futures=True)
            raise


class Concatenation(ImageSet):
    """Several data sets of one label set, one after the other.

    The parts may differ in whether they know instances: a sample without them has `instance` all 0 and
    its thing pixels in `crowd`. `has_instances` is True only if all parts know them. Ids become
    "{part name}/{id}". Raises ValueError unless all have the same label set.
    """

    def __init__(self, datasets: Sequence[ImageSet]):
        label_sets = {dataset.label_set.name for dataset in datasets}
        if len(label_sets) != 1:
            raise ValueError(f"label sets {sorted(label_sets)}, expected one for all data sets")
        self._places = [(dataset, i) for dataset in datasets for i in range(len(dataset))]
        self.name = "+".join(dataset.name for dataset in datasets)
        self.label_set = datasets[0].label_set
        self.ids = [f"{dataset.name}/{dataset.ids[i]}" for dataset, i in self._places]
        self.has_instances = all(dataset.has_instances for dataset in datasets)

    def __getitem__(self, index: int) -> Sample:
        dataset, i = self._places[operator.index(index)]
        return replace(dataset[i], id=self.ids[index])

    def origin(self, index: int) -> str:
        dataset, i = self._places[operator.index(index)]
        return dataset.origin(i)


def source_share_counts(batch_size: int, share: float) -> tuple[int, int]:
    """How many samples of a self-training batch come from the source, and from the target.

    These are round(share * batch_size), halves up, and the rest. Raises ValueError for a batch size below 1
    or a share outside [0, 1].

    References
    ----------
    Thesis ch. 8 fig. 6 (shares 0, 0.25, 0.5, 0.75).
    """
    if batch_size < 1 or not 0 <= share <= 1:
        raise ValueError(f"batch_size = {batch_size}, share = {share}; expected >= 1 and a share in [0, 1]")
    n_source = math.floor(share * batch_size + 0.5)
    return n_source, batch_size - n_source
