"""Adversarial adaptation and Meta Pseudo Labels: losses, symmetry, signs, and bit-for-bit resumption."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from panolib.config import ProfileError, from_mapping, to_plain
from panolib.data.samples import Sample
from panolib.labels import VOID
from panolib.related.realtime import adversarial, meta_pseudo_labels
from panolib.related.realtime.adversarial import (
    AdversarialSpec,
    AdversarySpec,
    PseudoLabelSpec,
    adversarial_train,
    discriminator_loss,
    domain_loss,
)
from panolib.related.realtime.discriminator import Discriminator
from panolib.related.realtime.meta_pseudo_labels import (
    MetaSpec,
    hard_labels,
    meta_train,
    noise_rectangles,
    paper_feedback,
    rt_feedback,
    uda_loss,
)
from panolib.training.setup import build_semantic
from panolib.training.specs import Augmentation, Compute, EncoderSpec, Optimiser, SemanticNetwork

NETWORK = SemanticNetwork("bisenet", EncoderSpec("test_efficientnet", None), 32)
SHARED = {
    "label_set": "cityscapes", "source": "a", "target": "b", "validation": "c", "network": NETWORK,
    "optimiser": Optimiser("sgd", 0.05, 0.0, 0.9, 1.0, "poly", 0),
    "augmentation": Augmentation(32, 64, (0.5, 1.0), "window", 0.5, 0.0, 0.0, None),
    "iterations": 4, "batch_size": 2, "n_target": 2, "batch_norm": "target",
    "compute": Compute("cpu", "32-true", 0, False), "seed": 3,
}  # fmt: skip
ADVERSARY = AdversarySpec("light", 4, 0.01, 0.1, 0)
META = {
    "student_pretrained": True,
    "threshold": None,
    "uda_weight": 1.0,
    "epochs": 50,
    "adversary": ADVERSARY,
}


class Streets:
    """Labelled or unlabelled noise."""

    def __init__(self, labels: bool, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 255, (3, 32, 64, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 19, (3, 32, 64)).astype(np.uint8) if labels else [None] * 3

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not 0 <= index < 3:
            raise IndexError(index)
        nothing = np.zeros((32, 64), np.int32)
        return Sample(self.images[index], self.labels[index], nothing, nothing > 0, str(index))


class Memory:
    """A job that keeps what it is given, and may stop in the middle."""

    def __init__(self, state=None, start=0, stop=None):
        self.state, self.start, self.stop, self.rows = state, start, stop, []

    def resume(self):
        return self.state

    def progress(self, start, stop):
        return range(start, self.stop or stop)

    def log(self, iteration, **values):
        self.rows.append({name: float(torch.as_tensor(value).detach()) for name, value in values.items()})

    def checkpoint(self, state_fn, iteration):
        self.saved = copy.deepcopy(state_fn())
        self.at = iteration


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return build_semantic(NETWORK, 19).state_dict()


def adversarial_run(start, job, labels=None, **values):
    spec = AdversarialSpec(**SHARED | {"adversary": ADVERSARY, "pseudo_labels": None} | values)
    return adversarial_train(spec, job, start, Streets(True), Streets(False, 1), 19, pseudo_labels=labels)


def meta_run(start, job, **values):
    spec = MetaSpec(**SHARED | META | {"mode": "paper", "feedback": "old_minus_new"} | values)
    return meta_train(spec, job, start, Streets(True), Streets(False, 1), 19)


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_losses_by_hand():
    """A discriminator that always says "label 1" with probability 0.75."""
    constant = nn.Conv2d(2, 1, 1)
    nn.init.zeros_(constant.weight)
    nn.init.constant_(constant.bias, math.log(3))
    image = torch.rand(2, 2, 4, 4)
    assert domain_loss(constant, image, 1).item() == pytest.approx(-math.log(0.75))
    assert domain_loss(constant, image, 0).item() == pytest.approx(-math.log(0.25))
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert discriminator_loss(constant, image, image, 0).item() == pytest.approx(expected)
    assert discriminator_loss(constant, image, image, 1).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["fcd", "light"])
def test_both_label_conventions_train_the_same_network(start, monkeypatch, kind):
    """With the discriminator's output mirrored, every weight of the network is the same but for rounding."""
    trained = {}
    for source_label in (0, 1):

        def built(*arguments, mirror=source_label, **options):
            model = Discriminator(*arguments, **options)
            if mirror:
                last = [layer for layer in model.layers if isinstance(layer, nn.Conv2d)][-1]
                for value in last.parameters():
                    value.data.neg_()
            return model

        monkeypatch.setattr(adversarial, "Discriminator", built)
        adversary = AdversarySpec(kind, 4, 0.01, 1.0, source_label)
        job = Memory()
        trained[source_label] = weights(adversarial_run(start, job, adversary=adversary)), job.rows
    without = adversarial_run(start, Memory(), adversary=AdversarySpec(kind, 4, 0.01, 0.0, 0))
    effect = (trained[0][0] - weights(without)).norm()
    assert (trained[0][0] - trained[1][0]).norm() < 0.02 * effect
    for row, other in zip(trained[0][1], trained[1][1], strict=True):
        assert row == pytest.approx(other, rel=1e-3)  # sums are rounded as the processor likes


def test_the_adversary_reaches_the_network_and_learns(start):
    without = adversarial_run(start, Memory(), adversary=AdversarySpec("fcd", 4, 0.01, 0.0, 0))
    job = Memory()
    with_it = adversarial_run(start, job, adversary=AdversarySpec("fcd", 4, 0.01, 1.0, 0))
    assert not torch.equal(weights(without), weights(with_it))
    assert job.rows[0]["judging"] != job.rows[-1]["judging"]
    parts = ("model", "optimizer", "discriminator", "judge_optimizer")
    assert set(job.saved) == set(parts)
    learned = build_adversary_weights(job.saved["discriminator"])
    other = AdversarySpec("fcd", 4, 1e-30, 1.0, 0)  # as good as no learning rate
    frozen = Memory()
    adversarial_run(start, frozen, adversary=other)
    assert not torch.equal(learned, build_adversary_weights(frozen.saved["discriminator"]))


def build_adversary_weights(state):
    return torch.cat([value.flatten() for value in state.values()])


def test_pseudo_labels_pull_and_void_ones_do_not(start):
    plain = weights(adversarial_run(start, Memory()))
    void = [np.full((32, 64), VOID, np.uint8)] * 3
    road = [np.zeros((32, 64), np.uint8)] * 3
    wanted = PseudoLabelSpec(1, "set", 0.9)
    assert torch.equal(plain, weights(adversarial_run(start, Memory(), void, pseudo_labels=wanted)))
    assert not torch.equal(plain, weights(adversarial_run(start, Memory(), road, pseudo_labels=wanted)))


def test_statistics_follow_the_target_or_both(start):
    target, both = (
        adversarial_run(start, Memory(), iterations=1, batch_norm=which) for which in ("target", "both")
    )
    mean = "spatial.0.1.running_mean"
    states = [model.module.state_dict() for model in (target, both)]
    assert not torch.equal(states[0][mean], states[1][mean])
    assert torch.equal(states[0]["spatial.0.0.weight"], states[1]["spatial.0.0.weight"])


@pytest.mark.parametrize("train", [adversarial_run, meta_run])
def test_resumed_is_never_interrupted(start, train):
    values = {"mode": "rt"} if train is meta_run else {}

    def final(found):
        return torch.cat([weights(model) for model in (found if isinstance(found, tuple) else (found,))])

    whole, first = Memory(), Memory(stop=2)
    expected = final(train(start, whole, **values))
    train(start, first, **values)
    second = Memory(first.saved, start=first.at)
    assert first.at == 2
    assert torch.equal(final(train(start, second, **values)), expected)
    assert first.rows + second.rows == whole.rows


def test_wrong_choices_are_named():
    good = to_plain(AdversarialSpec(**SHARED, adversary=ADVERSARY, pseudo_labels=None))
    assert from_mapping(AdversarialSpec, good, where="p") == AdversarialSpec(
        **SHARED, adversary=ADVERSARY, pseudo_labels=None
    )
    for wrong, said in (
        ({"batch_norm": "mixed"}, r"batch_norm: expected 'both' or 'target', found 'mixed'"),
        ({"adversary": good["adversary"] | {"source_label": 2}}, r"source_label: expected 0 or 1"),
    ):
        with pytest.raises(ProfileError, match=said):
            from_mapping(AdversarialSpec, good | wrong, where="p")
    meta = to_plain(MetaSpec(**SHARED | META | {"mode": "paper", "feedback": "old_minus_new"}))
    with pytest.raises(ProfileError, match="feedback: expected 'old_minus_new'"):
        from_mapping(MetaSpec, meta | {"feedback": "both"}, where="p")


def test_feedback_is_the_product_of_the_gradients():
    """Old minus new equals learning rate times gradient product, up to the curvature."""
    torch.manual_seed(0)
    theta = torch.randn(6, dtype=torch.float64, requires_grad=True)
    first, second = torch.randn(2, 5, 6, dtype=torch.float64)

    def unlabelled(t):
        return (first @ t).tanh().square().mean()

    def labelled(t):
        return (second @ t).sigmoid().mean()

    (step,) = torch.autograd.grad(unlabelled(theta), theta)
    lr = 1e-5
    new = (theta - lr * step).detach().requires_grad_()
    (after,) = torch.autograd.grad(labelled(new), new)
    old_loss, new_loss = labelled(theta).detach(), labelled(new).detach()
    expected = lr * (after @ step)
    found = paper_feedback(old_loss, new_loss, "old_minus_new")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert paper_feedback(old_loss, new_loss, "new_minus_old") == -found


def test_ramp_of_rt():
    losses = torch.tensor(2.0), torch.tensor(3.0)

    def found(epoch):
        return rt_feedback(*losses, lr=0.1, epoch=epoch).item()

    assert found(0) == 1
    assert found(10) == pytest.approx((math.exp(10 / 40) - 1) * 0.6)
    assert found(25) == pytest.approx((math.exp(25 / 40) - 1) * 0.6)
    assert found(26) == pytest.approx(0.6) and found(49) == pytest.approx(0.6)


@pytest.mark.parametrize(("mode", "same"), [("paper", False), ("rt", True)])
def test_the_sign_matters_in_paper_mode_only(start, mode, same):
    signs = meta_pseudo_labels.FEEDBACK
    teachers = [weights(meta_run(start, Memory(), mode=mode, feedback=sign)[1]) for sign in signs]
    assert torch.equal(*teachers) is same


def test_scratch_student_and_labels_that_are_selected(start):
    job = Memory()
    student, _ = meta_run(start, job, student_pretrained=False, threshold=0.9, iterations=1)
    assert 0 < job.rows[0]["coverage"] < 0.7  # about half: medians
    other, _ = meta_run(start, Memory(), iterations=1)
    assert not torch.equal(weights(student), weights(other))


def test_hard_labels():
    logits = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hard_labels(logits, (6, 8), None), logits.argmax(1))
    kept = hard_labels(logits, (6, 8), 0.99)
    assert kept.dtype == torch.int64 and torch.equal(kept[kept != VOID], logits.argmax(1)[kept != VOID])
    for image, best in zip(kept, logits.argmax(1)):
        for class_id in range(3):
            share = (image[best == class_id] != VOID).float().mean()
            assert share == pytest.approx(0.5, abs=0.1)


def test_noise_stays_in_a_rectangle():
    torch.manual_seed(0)
    image = torch.zeros(200, 3, 8, 16)
    changed = (noise_rectangles(image) != 0).all(1)
    touched = changed.flatten(1).any(1)
    assert 0.25 < touched.float().mean() < 0.55  # half of the images, less those with an empty rectangle
    for mask in changed[touched]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        for line in (rows, columns):
            (places,) = line.nonzero(as_tuple=True)
            assert places[-1] - places[0] + 1 == line.sum()
    assert torch.equal(noise_rectangles(image, probability=0.0), image)


def test_consistency_is_least_for_equal_logits():
    clean = torch.randn(1, 4, 2, 2, requires_grad=True)
    noisy = torch.randn(1, 4, 2, 2, requires_grad=True)
    assert uda_loss(clean, clean.detach()) < uda_loss(clean, noisy)
    grads = torch.autograd.grad(uda_loss(clean, noisy), (clean, noisy), allow_unused=True)
    assert grads[0] is None and grads[1].abs().sum() > 0
