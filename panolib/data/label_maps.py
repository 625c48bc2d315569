"""Label maps of any integer type, byte order and strides, as tensors that torch can compute with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panolib.data.images import look_up, row_strips

# torch hardly computes with wide unsigned types
_ARRAY_TYPES = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
_TENSOR_TYPES = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_labels(labels, name: str, *, device: torch.device | None = None) -> Tensor:
    """Integer labels, an array or Tensor of any shape, as a tensor; `name` is what messages call them.

    An array may be flipped, transposed, read-only or of foreign byte order. Unsigned types of 16 bits and
    more become the next wider signed one; memory is shared where torch can. The `device` is by default that
    of a tensor, or the CPU for an array. Raises ValueError for values that are not integers, or that int64
    cannot hold.
    """
    if not torch.is_tensor(labels):
        array = np.asarray(labels)
        if array.dtype.kind not in "iub":
            raise ValueError(f"{name} is {array.dtype}, expected an integer type")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds {array.max()}, expected at most {np.iinfo(np.int64).max}")
        kind = array.dtype.newbyteorder("=")
        array = np.asarray(array.astype(_ARRAY_TYPES.get(kind.name, kind), copy=False), order="C")
        shared = array.flags.writeable and min(array.strides, default=0) >= 0  # one pixel may be "flipped"
        return torch.from_numpy(array if shared else array.copy()).to(device)
    if labels.dtype in _TENSOR_TYPES:
        wide = labels.to(_TENSOR_TYPES[labels.dtype])
        if labels.dtype == torch.uint64 and (wide < 0).any():
            raise ValueError(f"{name} holds an id above {2**63 - 1}, expected at most that")
        return wide.to(device)
    if labels.dtype not in _WHOLE:
        raise ValueError(f"{name} is {labels.dtype}, expected an integer type")
    return labels.to(device)


def as_ids(labels, name: str, *, highest: int | None = None) -> Tensor:
    """int64 Tensor of labels that are 0 or more, and at most `highest`; parameters as in `as_labels`.

    Raises ValueError as `as_labels`, and naming the first bound that is broken.
    """
    labels = as_labels(labels, name)
    fits = labels.dtype in (torch.bool, torch.uint8) and (highest is None or highest >= 255)
    labels = labels.long()
    if labels.numel() and not fits:
        low, top = torch.stack(torch.aminmax(labels)).tolist()
        if low < 0:
            raise ValueError(f"{name} has the id {low}, expected ids >= 0")
        if highest is not None and top > highest:
            raise ValueError(f"{name} has the id {top}, expected 0 .. {highest}")
    return labels


def consecutive(labels, name: str = "labels") -> tuple[Tensor, Tensor]:
    """Ids 1 .. K in the order of the old ones; 0 stays 0, by value.

    Memory grows with the number of pixels, not with the ids. `labels` are 0 or ids >= 1, of any shape.
    Returns int64 labels of this shape, and int64 [K + 1], the old id of each new one, 0 first. Raises
    ValueError for an id that is negative or not an integer.
    """
    labels = as_labels(labels, name).long()
    flat = labels.flatten()
    if flat.numel() == 0:
        return labels, labels.new_zeros(1)
    low, top = torch.stack(torch.aminmax(flat)).tolist()
    if low < 0:
        raise ValueError(f"{name} has the id {low}, expected ids >= 0")
    if top > 4 * flat.numel() + 2**12:  # sparse ids: sorting them takes less than a table of all
        ids, number = torch.unique(flat, return_inverse=True)
        if low > 0:
            ids, number = torch.cat([ids.new_zeros(1), ids]), number + 1
        return number.view_as(labels), ids
    present = torch.zeros(top + 1, dtype=torch.bool, device=flat.device).index_fill_(0, flat, True)
    present[0] = True
    number = present.cumsum(0).sub_(1)
    return number.index_select(0, flat).view_as(labels), present.nonzero().squeeze(1)


def numbered(labels, name: str = "labels") -> tuple[np.ndarray, int]:
    """`consecutive` labels [H, W] as an int32 array on the CPU, and K; in little memory for large maps."""
    labels = as_labels(labels, name).cpu()
    low, top = torch.stack(torch.aminmax(labels)).tolist() if labels.numel() else (0, 0)
    if low < 0 or top > 4 * labels.numel() + 2**12:
        found, ids = consecutive(labels, name)
        return found.numpy().astype(np.int32), len(ids) - 1
    labels, present = labels.numpy(), np.zeros(int(top) + 1, bool)
    labels = labels.view(np.uint8) if labels.dtype == bool else labels  # as ids, not as a mask
    for rows in row_strips(labels.shape):
        present[labels[rows]] = True
    present[0] = False
    number = (present.cumsum() * present).astype(np.int32)
    return look_up(number, labels), int(number.max())
