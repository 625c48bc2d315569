"""The momentum network (teacher)."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.profiler import record_function


def make_teacher(student: nn.Module) -> nn.Module:
    """An independent copy of `student`, in eval mode and without gradients."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@record_function("momentum update")
@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, decay: float) -> None:
    """Move every parameter and buffer of `teacher` towards `student`, in place.

    teacher <- decay * teacher + (1 - decay) * student, for weights and for batch-norm statistics; integer
    buffers (counts of batches) are copied. `decay` 0 copies, 1 leaves the teacher as it is. ValueError where
    it is outside [0, 1] or the networks differ; the message names the first tensor that does.

    References
    ----------
    Thesis eq. 4; Araslanov & Roth 2021, arXiv:2105.00097 (moves the buffers; SPOCO does not).
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay!r}, expected a value in [0, 1]")
    pairs = _paired_tensors(teacher, student)
    moving = [(old, new) for old, new in pairs if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1.0 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)


def _paired_tensors(teacher: nn.Module, student: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers of both networks, side by side, in the order of definition.

    Paired by position, because a student wrapped for several devices has a prefix before its names.
    """
    old = list(chain(teacher.named_parameters(), teacher.named_buffers()))
    new = list(chain(student.named_parameters(), student.named_buffers()))
    if len(old) != len(new):
        raise ValueError(f"the teacher has {len(old)} parameters and buffers, the student {len(new)}")
    for (name, a), (_, b) in zip(old, new):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"{name} is {a.dtype} {tuple(a.shape)} in the teacher, "
                f"{b.dtype} {tuple(b.shape)} in the student"
            )
    return [(a, b) for (_, a), (_, b) in zip(old, new)]
