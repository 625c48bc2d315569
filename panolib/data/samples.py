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
    """One image with its labels.

    Attributes
    ----------
    image : uint8 array [H, W, 3]
        RGB.
    semantic : uint8 array [H, W] or None
        Train ids, 255 is void. None (with the next two) if the data set was opened without labels.
    instance : int32 array [H, W] or None
        0 = no instance, otherwise an id >= 1 that no other object of the image has.
    crowd : bool array [H, W] or None
        Thing pixels that are not one object: groups, or objects whose instances are not known.
    id : str
    ignored : bool array [H, W] or None
        Pixels on which the official instance evaluation of the data set counts no false instance. None where
        these are the void pixels. Cityscapes is the exception: a single caravan or trailer is void, and yet
        its tool counts predictions there.
    """

    image: np.ndarray
    semantic: np.ndarray | None
    instance: np.ndarray | None
    crowd: np.ndarray | None
    id: str
    ignored: np.ndarray | None = None


class ImageSet(Sequence[Sample]):
    """A sequence of samples; base of every data set here.

    Attributes
    ----------
    name : str
    label_set : LabelSet
    ids : list of str
        Sample ids in order.
    has_instances : bool
        Whether `instance` tells objects apart. False without labels and where the data set knows none.
    """

    name: str
    label_set: LabelSet
    ids: list[str]
    has_instances: bool

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

    Parameters
    ----------
    max_bytes : float, optional
        Of all samples kept; None keeps everything. A sample larger than this is decoded each time.
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

    Parameters
    ----------
    dataset : ImageSet
    size : (height, width), optional
        Resize every sample: image by area mean (bilinear where it grows), labels by the nearest pixel at
        each output pixel's centre, so both stay aligned. Small instances may vanish.
    transform : callable, optional
        uint8 image [H, W, 3] -> uint8 image [H, W, 3], applied once to each image as read, before resizing;
        for example `stretch_intensity`.
    memory : Memory, optional
        What bounds the samples kept, of this and perhaps other data sets. By default all are kept.
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
