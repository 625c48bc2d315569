"""Each loss, fast and as a formula, equals a loop over pixels and instances: value and gradient (float64)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from panolib.labels import VOID
from panolib.losses import plain, semantic
from panolib.losses.consistency import draw_anchors
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss

DELTA_VAR, DELTA_DIST, THRESHOLD = 0.5, 2.0, 0.5
WIDTH = DELTA_VAR**2 / -math.log(THRESHOLD)


# --- the slow, obvious references --------------------------------------------------------------------------


def norm(vector):
    """Euclidean length whose gradient at 0 is 0."""
    return vector.square().sum().sqrt() if vector.detach().abs().max() > 0 else vector.sum() * 0.0


def all_pixels(labels):
    height, width = labels.shape
    return [(y, x) for y in range(height) for x in range(width)]


def pixels_by_instance(labels, ignore):
    pixels = {}
    for y, x in all_pixels(labels):
        if labels[y, x] != 0 and not ignore[y, x]:
            pixels.setdefault(int(labels[y, x]), []).append((y, x))
    return pixels


def mean_of(embeddings, pixels):
    return sum(embeddings[:, y, x] for y, x in pixels) / len(pixels)


def loop_pull(embeddings, labels, ignore):
    instances = pixels_by_instance(labels, ignore)
    total = embeddings.sum() * 0.0
    for pixels in instances.values():
        mean = mean_of(embeddings, pixels)
        for y, x in pixels:
            hinge = (norm(mean - embeddings[:, y, x]) - DELTA_VAR).clamp(min=0)
            total = total + hinge**2 / len(pixels) / len(instances)
    return total


def loop_push(embeddings, labels, ignore):
    means = [mean_of(embeddings, pixels) for pixels in pixels_by_instance(labels, ignore).values()]
    n_pairs = len(means) * (len(means) - 1)
    hinges = []
    for k, a in enumerate(means):
        for m, b in enumerate(means):
            if k != m:
                hinges.append((2 * DELTA_DIST - norm(a - b)).clamp(min=0))
    return embeddings.sum() * 0.0 + sum(h**2 for h in hinges) / max(n_pairs, 1)


def loop_regulariser(embeddings, labels, ignore):
    instances = pixels_by_instance(labels, ignore)
    total = embeddings.sum() * 0.0
    for pixels in instances.values():
        total = total + norm(mean_of(embeddings, pixels)) / len(instances)
    return total


def loop_soft_masks(embeddings, labels, ignore):
    """For each instance the list of (soft, hard) values of the pixels that are not ignored."""
    counted = [(embeddings[:, y, x], labels[y, x]) for y, x in all_pixels(labels) if not ignore[y, x]]
    masks = []
    for instance, pixels in pixels_by_instance(labels, ignore).items():
        mean = mean_of(embeddings, pixels)
        masks.append([
            (torch.exp(-(pixel - mean).square().sum() / WIDTH), (label == instance).double())
            for pixel, label in counted
        ])
    return masks


def loop_dice(pairs):
    p, q = (torch.stack(column) for column in zip(*pairs))
    return 2 * (p * q).sum() / max(1e-6, (p * p).sum() + (q * q).sum())


def loop_object_dice(embeddings, labels, ignore):
    masks = loop_soft_masks(embeddings, labels, ignore)
    return embeddings.sum() * 0.0 + sum((1 - loop_dice(mask)) / len(masks) for mask in masks)


def loop_unlabelled_push(embeddings, labels, ignore):
    instances = pixels_by_instance(labels, ignore)
    unlabelled = [(y, x) for y, x in all_pixels(labels) if labels[y, x] == 0 and not ignore[y, x]]
    total = embeddings.sum() * 0.0
    for pixels in instances.values():
        mean = mean_of(embeddings, pixels)
        for y, x in unlabelled:
            hinge = (DELTA_DIST - norm(mean - embeddings[:, y, x])).clamp(min=0)
            total = total + hinge**2 / len(unlabelled) / len(instances)
    return total


def loop_anchors(student, teacher, labels, counted, max_anchors=20):
    """Anchors as SPOCO draws them; only the random priority of each pixel is shared with the library."""
    priority = torch.rand(labels.numel()).reshape(labels.shape)
    left = {(y, x) for y, x in all_pixels(labels) if labels[y, x] == 0 and counted[y, x]}
    anchors = []
    while len(anchors) < max_anchors and left and len(left) >= 0.05 * labels.numel():
        ay, ax = max(left, key=lambda p: float(priority[p]))
        anchors.append((ay, ax))
        for field in (student, teacher):
            left = {(y, x) for y, x in left if norm(field[:, y, x] - field[:, ay, ax]) >= DELTA_VAR}
    return anchors


def loop_consistency(student, teacher, labels, counted):
    anchors = loop_anchors(student.detach(), teacher.detach(), labels, counted)
    total = student.sum() * 0.0
    for ay, ax in anchors:
        pairs = [
            tuple(
                torch.exp(-(field[:, y, x] - field[:, ay, ax]).square().sum() / WIDTH)
                for field in (student, teacher.detach())
            )
            for y, x in all_pixels(labels) if counted[y, x]
        ]
        total = total + (1 - loop_dice(pairs)) / len(anchors)
    return total, len(anchors)


def loop_cross_entropy(logits, labels):
    total = logits.sum() * 0.0
    for b in range(len(labels)):
        for y, x in all_pixels(labels[b]):
            if labels[b, y, x] != VOID:
                scores = logits[b, :, y, x]
                total = total + (scores.exp().sum().log() - scores[labels[b, y, x]])
    return total / labels.numel()


def loop_self_training(logits, labels, confidence, prior, exponent):
    total = logits.sum() * 0.0
    for b in range(len(labels)):
        for y, x in all_pixels(labels[b]):
            k = int(labels[b, y, x])
            if k != VOID:
                scores = logits[b, :, y, x]
                log_p = scores[k] - scores.exp().sum().log()
                total = total - confidence[b, y, x] * (1 - prior[k]) ** exponent * log_p
    return total / labels.numel()


# --- comparison --------------------------------------------------------------------------------------------


def assert_same(fast, slow, leaf):
    """Value and gradient."""
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(fast, leaf)
    (expected,) = torch.autograd.grad(slow, leaf)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


def scene(n_instances, *, background=True, ignored=True, seed=0, size=None):
    """Embeddings, labels with arbitrary ids, ignore mask; every instance has at least one pixel left."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size or ((8, 9) if n_instances > 2 else (5, 7))
    n_pixels = height * width
    ids = torch.randperm(30_000, generator=generator)[:n_instances] + 1
    labels = torch.zeros(n_pixels, dtype=torch.int64)
    if n_instances:
        labels = ids[torch.randint(n_instances, (n_pixels,), generator=generator)]
        if background:
            labels[torch.rand(n_pixels, generator=generator) < 0.4] = 0
    labels[:n_instances] = ids
    ignore = torch.zeros(n_pixels, dtype=torch.bool)
    if ignored:
        ignore[n_instances:] = torch.rand(n_pixels - n_instances, generator=generator) < 0.2
    order = torch.randperm(n_pixels, generator=generator)
    labels, ignore = labels[order].reshape(height, width), ignore[order].reshape(height, width)
    embeddings = torch.randn(3, height, width, generator=generator, dtype=torch.float64)
    return embeddings.requires_grad_(), labels, ignore


LOOPS = {
    "pull": loop_pull,
    "push": loop_push,
    "regulariser": loop_regulariser,
    "object_dice": loop_object_dice,
    "unlabelled_push": loop_unlabelled_push,
}
FORMULAS = {
    "pull": plain.pull_loss,
    "push": plain.push_loss,
    "regulariser": plain.regulariser,
    "object_dice": plain.object_dice_loss,
    "unlabelled_push": plain.unlabelled_push_loss,
}
NOTHING = EmbeddingLossWeights(0, 0, 0, 0, 0, 0)


def fast_term(name, embeddings, labels, ignore=None, **options):
    """One term of a batch of one image, with weight 1."""
    batch = {key: value if value is None else value[None] for key, value in options.items()}
    ignore = None if ignore is None else ignore[None]
    weights = replace(NOTHING, **{name: 1.0})
    return embedding_loss(embeddings[None], labels[None], weights=weights, ignore=ignore, **batch)[name]


def formula(name, embeddings, labels, ignore=None):
    counted = torch.ones_like(labels, dtype=torch.bool) if ignore is None else ~ignore
    return FORMULAS[name](embeddings[:, counted].T, labels[counted])


@pytest.mark.parametrize("version", [fast_term, formula])
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(
    ("n_instances", "background", "ignored"),
    [*itertools.product([0, 1, 2], [True, False], [True, False]), (60, True, True), (60, False, False)],
)
def test_term_equals_loops(version, name, n_instances, background, ignored):
    embeddings, labels, ignore = scene(n_instances, background=background, ignored=ignored)
    value = version(name, embeddings, labels, ignore if ignored else None)
    assert_same(value, LOOPS[name](embeddings, labels, ignore), embeddings)
    has_instances = n_instances > (1 if name == "push" else 0)
    has_both = has_instances and (background or n_instances == 0)
    assert (value > 0) == (has_both if name == "unlabelled_push" else has_instances)


@pytest.mark.parametrize("version", [fast_term, formula])
@pytest.mark.parametrize("name", LOOPS)
def test_term_equals_loops_where_distances_are_zero(version, name):
    """One-pixel instances, two equal means, and unlabelled pixels exactly on a mean."""
    labels = torch.tensor([[4, 9, 0, 0], [7, 7, 0, 5]])
    values = torch.tensor([[1.0, 1.0, 1.0, 3.0], [0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    embeddings = torch.stack([values, values / 2]).requires_grad_()
    ignore = torch.zeros_like(labels, dtype=torch.bool)
    assert_same(version(name, embeddings, labels), LOOPS[name](embeddings, labels, ignore), embeddings)


@pytest.mark.parametrize("n_instances", [0, 1, 2, 60])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("spread", [0.15, 0.5, 2.0])
def test_consistency_equals_loops(n_instances, masked, spread):
    """From one or two anchors that cover everything to the full twenty."""
    student, labels, ignore = scene(n_instances, ignored=masked, size=(8, 11))
    generator = torch.Generator().manual_seed(1)
    student = (student.detach() * spread).requires_grad_()
    noise = torch.randn(student.shape, generator=generator, dtype=torch.float64)
    teacher = (student.detach() + 0.2 * noise).requires_grad_()
    valid = torch.rand(labels.shape, generator=generator) < 0.8
    counted = valid & ~ignore if masked else torch.ones_like(valid)

    torch.manual_seed(5)
    views = {"teacher_embeddings": teacher, "valid": valid if masked else None}
    fast = fast_term("consistency", student, labels, ignore if masked else None, **views)
    torch.manual_seed(5)
    slow, n_anchors = loop_consistency(student, teacher, labels, counted)
    assert 1 <= n_anchors <= 20
    assert_same(fast, slow, student)
    torch.manual_seed(5)
    flat = [pixels.detach().flatten(1) for pixels in (student, teacher)]
    anchors = draw_anchors(*flat, (counted & (labels == 0)).flatten(), delta_var=DELTA_VAR)
    rows = (counted.flatten().cumsum(0) - 1)[anchors]  # among the counted pixels
    simple = plain.consistency_loss(student[:, counted].T, teacher[:, counted].T, rows)
    torch.manual_seed(5)
    assert_same(simple, loop_consistency(student, teacher, labels, counted)[0], student)
    torch.manual_seed(5)
    loss = fast_term("consistency", student, labels, teacher_embeddings=teacher)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


def test_batch_is_the_weighted_mean_over_images():
    """Three images, one of them without instances; every term against its loops."""
    scenes = [scene(2, seed=0), scene(0, seed=1), scene(1, seed=2)]
    embeddings = torch.stack([s[0].detach() for s in scenes]).requires_grad_()
    labels, ignore = torch.stack([s[1] for s in scenes]), torch.stack([s[2] for s in scenes])
    teacher = embeddings.detach() + 0.1
    valid = torch.ones_like(ignore)
    valid[:, :2] = False
    weights = EmbeddingLossWeights(0.7, 1.3, 0.2, 0.9, 1.1, 0.4)
    torch.manual_seed(3)
    terms = embedding_loss(
        embeddings, labels, weights=weights, ignore=ignore, teacher_embeddings=teacher, valid=valid
    )
    assert list(terms) == [
        "pull", "push", "regulariser", "object_dice", "unlabelled_push", "consistency"
    ]
    torch.manual_seed(3)
    for name, value in terms.items():
        if name == "consistency":
            views = zip(embeddings, teacher, labels, valid & ~ignore)
            images = [loop_consistency(*view)[0] for view in views]
        else:
            images = [LOOPS[name](e, y, i) for e, y, i in zip(embeddings, labels, ignore)]
        expected = getattr(weights, name) * sum(images) / 3
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
        (gradient,) = torch.autograd.grad(value, embeddings, retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, embeddings)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("void_share", [0.0, 0.4, 1.0])
def test_semantic_losses_equal_loops(void_share):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(4, (2, 3, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void_share] = VOID
    confidence = torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    prior = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    assert_same(semantic.cross_entropy(logits, labels), loop_cross_entropy(logits, labels), logits)
    for exponent in (3.0, 0.0):
        options = {"focal_exponent": exponent}
        fast = semantic.self_training_loss(logits, labels, confidence, prior, **options)
        assert_same(fast, loop_self_training(logits, labels, confidence, prior, exponent), logits)
        rows = logits.movedim(1, -1).flatten(0, 2), labels.flatten(), confidence.flatten()
        slow = loop_self_training(logits, labels, confidence, prior, exponent)
        assert_same(plain.self_training_loss(*rows, prior, **options), slow, logits)
    assert_same(plain.cross_entropy(*rows[:2]), loop_cross_entropy(logits, labels), logits)
