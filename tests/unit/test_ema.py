from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from panolib.training.instance_targets import epsilon
from panolib.training.specs import Margins
from panolib.training.teacher import make_teacher, update_teacher


def network(seed: int) -> nn.Module:
    """A small network whose batch-norm statistics have moved `seed` + 1 times."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for _ in range(seed + 1):
        model(torch.randn(2, 3, 4, 4))
    return model


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_update_moves_parameters_and_buffers_and_copies_counts():
    teacher, student = network(0), network(2)
    before, target = snapshot(teacher), snapshot(student)
    update_teacher(teacher, student, decay=0.9)
    after = teacher.state_dict()
    for name in before:
        if name == "1.num_batches_tracked":
            assert before[name] == 1 and after[name] == 3
        else:
            assert not torch.equal(before[name], target[name]) or name in ("1.weight", "1.bias")
            torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * target[name])
    for name, value in student.state_dict().items():
        assert torch.equal(value, target[name])


def test_decay_0_copies_and_decay_1_keeps():
    teacher, student = network(0), network(1)
    before = snapshot(teacher)
    update_teacher(teacher, student, decay=1.0)
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(teacher.state_dict()[name], before[name])
    update_teacher(teacher, student, decay=0.0)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


def test_a_copy_is_not_shared():
    teacher, student = network(0), network(1)
    update_teacher(teacher, student, decay=0.0)
    with torch.no_grad():
        student[0].weight.add_(1)
    assert not torch.equal(teacher[0].weight, student[0].weight)


def test_teacher_is_frozen_in_eval_and_independent():
    student = network(0).train()
    teacher = make_teacher(student)
    assert student.training and not teacher.training and not teacher[1].training
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    before = snapshot(teacher)
    student(torch.randn(2, 3, 4, 4))
    teacher(torch.randn(2, 3, 4, 4))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_update_leaves_the_graph_of_the_student_alone():
    student = network(0)
    teacher = make_teacher(student)
    loss = student(torch.randn(2, 3, 4, 4)).square().sum()
    update_teacher(teacher, student, decay=0.5)
    loss.backward()
    assert student[0].weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_network_without_buffers():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    update_teacher(teacher, student, decay=0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_networks_that_differ_are_refused():
    with pytest.raises(ValueError, match="weight is"):
        update_teacher(nn.Linear(2, 2), nn.Linear(3, 2), decay=0.5)
    with pytest.raises(ValueError, match="2 parameters and buffers, the student 1"):
        update_teacher(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), decay=0.5)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        update_teacher(nn.Linear(2, 2), nn.Linear(2, 2), decay=1.5)


def test_epsilon_decays_from_epsilon_0():
    margins = Margins(0.5, 1.5, 0.5, epsilon_0=0.5, epsilon_tau=5000)
    assert epsilon(0, margins) == 0.5
    assert epsilon(5000, margins) == pytest.approx(0.5 / math.e)
    assert epsilon(10**6, margins) < 1e-80
    assert epsilon(123, replace(margins, epsilon_0=0.0)) == 0.0
