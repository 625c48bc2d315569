"""A labelled image, sequences of them, and serving these from memory."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from panolib.data.images import resize_image, resize_labels
from panolib.labels import LabelSet


@dataclass(frozen=True)
class Sample:
    """One image with its labels; these are None if the data set was opened without."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    semantic: np.ndarray | None  # uint8 [H, W], train ids, 255 is void
    instance: np.ndarray | None  # int32 [H, W], 0 = none, otherwise an id >= 1 that no other object has
    crowd: np.ndarray | None  # bool [H, W], thing pixels of groups, or of objects not told apart
    id: str
    # bool [H, W], pixels on which the official instance evaluation counts no false instance; None: the void
    # ones. Cityscapes is the exception: a single trailer is void, and yet its tool counts predictions there.
    ignored: np.ndarray | None = None


class ImageSet(Sequence[Sample]):
    """A sequence of samples; base of every data set here."""

    name: str
    label_set: LabelSet
    ids: list[str]  # of the samples, in order
    has_instances: bool  # whether `instance` tells objects apart; False without labels

    def __len__(self) -> int:
        return len(self.ids)

    def semantic(self, index: int) -> np.ndarray | None:
        """uint8 [h, w] train ids of one sample, perhaps without decoding its image."""
        return self[index].semantic

    def origin(self, index: int) -> str:
        """Name of the data set that a sample comes from."""
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {len(self)} images)"


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """Sample at another size; labels take the nearest pixel at each centre."""
    labels = {name: getattr(sample, name) for name in ("semantic", "instance", "crowd", "ignored")}
    labels = {name: None if part is None else resize_labels(part, size) for name, part in labels.items()}
    return replace(sample, image=resize_image(sample.image, size), **labels)


class Memory:
    """Decoded samples of several data sets: the least recently used ones go when there are too many.

    The bound holds for one process. A copy in another process (pickled) starts empty; loader workers that are
    forked share what was decoded before and add their own.

    `max_bytes` is of all samples kept; None keeps everything. A sample larger than this is decoded each time.
    """

    def __init__(self, max_bytes: float | None = None):
        self.max_bytes = math.inf if max_bytes is None else max_bytes
        self.n_bytes = 0
        self._samples: dict[Hashable, Sample] = {}  # the most recently used one last
        self._lock = threading.Lock()

    def __getstate__(self) -> float:
        return self.max_bytes

    def __setstate__(self, max_bytes: float) -> None:
        self.__init__(max_bytes)

    def get(self, key: Hashable, decode: Callable[[], Sample]) -> Sample:
        """The sample kept under `key`, decoded first if it is not here."""
        with self._lock:
            sample = self._samples.pop(key, None)
            if sample is not None:
                self._samples[key] = sample
                return sample
        sample = decode()
        with self._lock:
            if key not in self._samples:
                self._samples[key] = sample
                self.n_bytes += n_bytes(sample)
            while self.n_bytes > self.max_bytes:
                self.n_bytes -= n_bytes(self._samples.pop(next(iter(self._samples))))
        return sample

    def fits(self, size: float) -> bool:
        """Whether `size` more bytes can be kept beside what is here."""
        return self.n_bytes + size <= self.max_bytes


def n_bytes(sample: Sample) -> int:
    """Memory of the arrays of a sample."""
    arrays = (getattr(sample, field.name) for field in fields(sample))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


class InMemory(ImageSet):
    """A data set served from memory. Samples are shared: do not write into them.

    Everything is decoded at once where it fits, so that a damaged file is found before hours are spent and
    forked loader workers share the pixels. A set that does not fit is decoded as it is asked for.

    Images are changed by `transform` (uint8 [H, W, 3] to the same) and then, with their labels, brought to
    `size` (`resize_sample`): small instances may vanish. `memory` bounds the samples kept, of this and
    perhaps other data sets; by default all are kept.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        size: tuple[int, int] | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        memory: Memory | None = None,
    ):
        self.name, self.label_set, self.ids = dataset.name, dataset.label_set, list(dataset.ids)
        self.has_instances = dataset.has_instances
        self._dataset, self._size, self._transform = dataset, size, transform
        self._memory = Memory() if memory is None else memory
        for index, left in enumerate(reversed(range(len(dataset)))):
            if not self._memory.fits(left * n_bytes(self[index])):  # if the others are as large
                break

    def _decode(self, index: int) -> Sample:
        sample = self._dataset[index]
        if self._transform is not None:
            sample = replace(sample, image=self._transform(sample.image))
        return sample if self._size is None else resize_sample(sample, self._size)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[operator.index(index)]
        return self._memory.get((self, index), lambda: self._decode(index))
