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
    """Which classes the labels of each image show, one pixel being enough.

    Only labels are read, at the size of their files.

    Parameters
    ----------
    dataset : ImageSet
        Opened with labels.
    n_workers : int
        Threads that decode labels.
    progress : bool
        Show a tqdm bar.

    Returns
    -------
    bool array [images, classes]

    Raises
    ------
    ValueError
        If the data set was opened without labels.
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
    """Several data sets of one label set, one after the other, each whole or in part.

    The parts may differ in whether they know instances: a sample without them has `instance` all 0 and
    its thing pixels in `crowd`. `has_instances` is True only if all parts know them. Ids become
    "{part name}/{id}".

    Parameters
    ----------
    datasets : sequence of ImageSet
    indices : sequence of (sequence of int or None), optional
        Positions taken from each data set; None takes all.

    Raises
    ------
    ValueError
        If there is no data set, the numbers of data sets and index lists differ, label sets differ, or
        no sample is left.
    IndexError
        For a position outside its data set.
    """

    def __init__(self, datasets: Sequence[ImageSet], indices: Sequence[Sequence[int] | None] | None = None):
        indices = [None] * len(datasets) if indices is None else list(indices)
        if not datasets or len(indices) != len(datasets):
            raise ValueError(f"{len(datasets)} data sets, {len(indices)} index lists, expected one for each")
        label_sets = {dataset.label_set.name: dataset.label_set for dataset in datasets}
        if len(label_sets) != 1:
            raise ValueError(f"label sets {sorted(label_sets)}, expected one for all data sets")

        self._datasets = list(datasets)
        self._places = [
            (part, operator.index(i))
            for part, (dataset, chosen) in enumerate(zip(datasets, indices))
            for i in (range(len(dataset)) if chosen is None else chosen)
        ]
        self.name = "+".join(dataset.name for dataset in datasets)
        self.label_set = datasets[0].label_set
        if not self._places:
            raise ValueError(f"{self.name}: no sample left, expected at least one")
        self.ids = [f"{datasets[part].name}/{datasets[part].ids[i]}" for part, i in self._places]
        self.has_instances = all(datasets[part].has_instances for part, _ in self._places)

    def __getitem__(self, index: int) -> Sample:
        part, i = self._places[operator.index(index)]
        return replace(self._datasets[part][i], id=self.ids[index])

    def semantic(self, index: int) -> np.ndarray | None:
        part, i = self._places[operator.index(index)]
        return self._datasets[part].semantic(i)

    def origin(self, index: int) -> str:
        part, i = self._places[operator.index(index)]
        return self._datasets[part].origin(i)


def source_share_counts(batch_size: int, share: float) -> tuple[int, int]:
    """How many samples of a self-training batch come from the source, and from the target.

    Parameters
    ----------
    batch_size : int
        B >= 1.
    share : float
        p in [0, 1], the share of source samples.

    Returns
    -------
    (n_source, n_target) : tuple of int
        round(p B), halves up, and the rest.

    Raises
    ------
    ValueError
        For values outside these ranges.

    References
    ----------
    Thesis ch. 8 fig. 6 (shares 0, 0.25, 0.5, 0.75).
    """
    if batch_size < 1 or not 0 <= share <= 1:
        raise ValueError(f"batch_size = {batch_size}, share = {share}; expected >= 1 and a share in [0, 1]")
    n_source = math.floor(share * batch_size + 0.5)
    return n_source, batch_size - n_source
