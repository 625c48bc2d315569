"""Semantic pseudo labels: worked examples and plain loops as oracle."""

from __future__ import annotations

from math import exp

import pytest
import torch

from panolib.data.views import multi_view_crops, view_affines
from panolib.data.warping import warp
from panolib.labels import VOID
from panolib.training.crops import draw_rare_class, rare_class_weights
from panolib.training.pseudo_labels import (
    adaptive_thresholds,
    fuse_views,
    pseudo_label_quality,
    semantic_pseudo_labels,
    update_class_prior,
)


def probabilities(n=2, classes=4, height=5, width=6, seed=0, dtype=torch.float64, sharpness=3.0):
    generator = torch.manual_seed(seed)
    logits = sharpness * torch.randn(n, classes, height, width, generator=generator, dtype=dtype)
    return logits.softmax(1)


def affines(zoom, offset, flip):
    return view_affines(torch.tensor(zoom), torch.tensor(offset), torch.tensor(flip))


def whole_views(*flips):
    """Affines of copies that show all of the canvas."""
    return affines([1.0] * len(flips), [[0.0, 0.0]] * len(flips), list(flips))


def no_padding(n, height=5, width=6):
    return torch.zeros(n, height, width, dtype=torch.bool)


# --- class prior

def test_class_prior_equals_loop():
    prior = torch.tensor([1e-3, 0.2, 1e-3, 0.5], dtype=torch.float64)
    p = probabilities()
    p[:, 2] = 0.0                                                              # never predicted
    before = prior.clone()
    result = update_class_prior(prior, p, momentum=0.9)
    for c in range(4):
        values = [p[n, c, y, x].item() for n in range(2) for y in range(5) for x in range(6)]
        mean = sum(values) / len(values)
        old = mean if mean > 1e-8 and before[c].item() == 1e-3 else before[c].item()
        assert result[c].item() == pytest.approx(0.9 * old + 0.1 * mean, abs=1e-12)
    assert torch.equal(prior, before)


def test_class_prior_first_time_takes_the_mean():
    """Float32 holds 1e-3 inexactly; the rule must still recognise it."""
    prior = torch.full((2,), 1e-3)
    p = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    first = update_class_prior(prior, p)
    assert torch.allclose(first, torch.tensor([0.75, 0.25]))
    second = update_class_prior(first, p.flip(1))
    assert torch.allclose(second, torch.tensor([0.745, 0.255]))


def test_class_prior_of_half_precision_probabilities_is_float32():
    result = update_class_prior(torch.full((4,), 1e-3), probabilities(dtype=torch.float32).bfloat16())
    assert result.dtype == torch.float32 and result.sum().item() == pytest.approx(1, abs=1e-3)


# --- thresholds and labels

@pytest.mark.parametrize(("prior", "expected"), [(1e-4, 0.2), (1e-3, 0.469), (1e-2, 0.742)])
def test_threshold_worked_examples(prior, expected):
    fused = torch.tensor([0.99, 0.01]).view(1, 2, 1, 1)
    result = adaptive_thresholds(*fused.max(1), torch.tensor([prior, 0.5]))
    assert result[0, 0].item() == pytest.approx(expected, abs=1e-3)
    assert result[0, 1].item() == pytest.approx(0.2)                           # class 1 is nowhere the best


def loop_pseudo_labels(fused, valid, prior, zeta, beta, minimum):
    """Thesis ch. 7 algorithm 1, word by word."""
    n_crops, n_classes, height, width = fused.shape
    labels, thresholds = torch.full((n_crops, height, width), VOID), torch.zeros(n_crops, n_classes)
    confidence = torch.zeros(n_crops, height, width, dtype=fused.dtype)
    for n in range(n_crops):
        best = [0.0] * n_classes
        for y in range(height):
            for x in range(width):
                if valid[n, y, x]:
                    q, k = max((fused[n, c, y, x].item(), -c) for c in range(n_classes))
                    best[-k] = max(best[-k], q)
        thresholds[n] = torch.tensor(
            [max(minimum, zeta * (1 - exp(-prior[c].item() / beta)) * best[c]) for c in range(n_classes)]
        )
        for y in range(height):
            for x in range(width):
                if valid[n, y, x]:
                    q, k = max((fused[n, c, y, x].item(), -c) for c in range(n_classes))
                    confidence[n, y, x] = q
                    if q > thresholds[n, -k]:
                        labels[n, y, x] = -k
    return labels, confidence, thresholds


@pytest.mark.parametrize("seed", range(5))
def test_pseudo_labels_equal_loop(seed):
    generator = torch.manual_seed(seed)
    valid = torch.rand(3, 7, 6, generator=generator) < 0.8
    fused = probabilities(3, 5, 7, 6, seed, sharpness=1.5) * valid[:, None]
    prior = torch.tensor([0.6, 1e-2, 1e-3, 1e-4, 0.3], dtype=torch.float64)
    options = {"threshold_scale": 0.9, "prior_scale": 2e-3, "minimum": 0.35}
    labels, confidence, thresholds = loop_pseudo_labels(fused, valid, prior, 0.9, 2e-3, 0.35)
    result, score = semantic_pseudo_labels(fused, valid, prior, **options)
    assert result.dtype == torch.int64 and torch.equal(result, labels)
    assert torch.allclose(score, confidence, atol=1e-12)
    assert torch.allclose(adaptive_thresholds(*fused.max(1), prior, **options).float(), thresholds, atol=1e-6)
    assert 0.1 < (labels == VOID).double().mean() < 0.95


def test_thresholds_are_per_crop():
    """The same confidence passes in a crop of its own and fails beside a surer pixel."""
    fused = torch.tensor([[[0.6, 0.6]], [[0.6, 0.99]]])[:, None]               # [2, 1, 1, 2]
    fused = torch.cat([fused, 1 - fused], 1)
    labels, _ = semantic_pseudo_labels(fused, ~no_padding(2, 1, 2), torch.tensor([0.5, 0.5]))
    assert labels.tolist() == [[[0, 0]], [[VOID, 0]]]


def test_confidence_at_the_threshold_does_not_pass():
    fused = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1)
    labels, _ = semantic_pseudo_labels(fused, ~no_padding(1, 1, 1), torch.full((3,), 1e-6), minimum=0.5)
    assert labels.item() == VOID


def test_invalid_pixels_do_not_set_the_threshold():
    fused = torch.tensor([[[0.5, 1.0]], [[0.3, 0.0]], [[0.2, 0.0]]])[None]                  # [1, 3, 1, 2]
    labels, confidence = semantic_pseudo_labels(fused, torch.tensor([[[True, False]]]), torch.full((3,), 0.5))
    assert labels.tolist() == [[[0, VOID]]] and confidence.tolist() == [[[0.5, 0.0]]]


def test_all_padding_has_no_labels():
    labels, confidence = semantic_pseudo_labels(probabilities(), no_padding(2), torch.full((4,), 0.5))
    assert (labels == VOID).all() and (confidence == 0).all()


def test_single_pixel():
    fused = torch.tensor([0.1, 0.9]).view(1, 2, 1, 1)
    labels, confidence = semantic_pseudo_labels(fused, ~no_padding(1, 1, 1), torch.tensor([0.5, 0.5]))
    assert labels.item() == 1 and confidence.item() == pytest.approx(0.9)


# --- fusion

@pytest.mark.parametrize("flip", [False, True])
def test_one_view_is_unchanged(flip):
    p = probabilities(3)
    fused, valid = fuse_views(p, *whole_views(flip, flip, flip), no_padding(3), 1)
    assert valid.all() and torch.allclose(fused, p, atol=1e-6)


def test_two_whole_views_give_their_mean():
    p = probabilities(2)
    fused, valid = fuse_views(p, *whole_views(False, True), no_padding(2), 2)
    mean = (p[0] + p[1].flip(-1)) / 2
    assert valid.all()
    assert torch.allclose(fused[0], mean, atol=1e-6) and torch.allclose(fused[1], mean.flip(-1), atol=1e-6)


def bilinear(image, x, y):
    """Plain bilinear sample at pixel position (x, y), 0 outside; image [C, H, W]."""
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    x0, y0 = int(torch.floor(x)), int(torch.floor(y))
    for yy in (y0, y0 + 1):
        for xx in (x0, x0 + 1):
            if 0 <= yy < image.shape[1] and 0 <= xx < image.shape[2]:
                total += (1 - (x - xx).abs()) * (1 - (y - yy).abs()) * image[:, yy, xx]
    return total


def loop_warp(image, affine):
    """[C, H, W] resampled pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            p = torch.tensor([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1, 1.0], dtype=image.dtype)
            x, y = affine @ p
            result[:, i, j] = bilinear(image, ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2)
    return result


def test_fusion_equals_loop():
    """Methods 1.2.4: zero padded pixels, warp, average where seen, warp back."""
    torch.manual_seed(0)
    p = probabilities(6, 3, 6, 8)
    views = multi_view_crops(torch.rand(2, 3, 6, 8), n_views=3, zoom=(0.5, 1.4), reference_scale=(0.7, 1.1))
    affine, inverse = views.affine.double(), views.inverse.double()
    fused, valid = fuse_views(p, affine, inverse, views.padding, 3)
    for b in range(2):
        total = sum(loop_warp(p[n] * ~views.padding[n], affine[n]) for n in range(3 * b, 3 * b + 3))
        mass = total.sum(0)
        canvas = total / mass.clamp(min=1e-3) * (mass > 0.1)
        for n in range(3 * b, 3 * b + 3):
            back = loop_warp(canvas, inverse[n])
            mass = back.sum(0)
            seen = (mass > 0.1) & ~views.padding[n]
            assert torch.equal(valid[n], seen)
            assert torch.allclose(fused[n], back / mass.clamp(min=1e-3) * seen, atol=1e-9)
    assert views.padding.any() and not valid.all()
    assert torch.allclose(fused.sum(1), valid.double())


def test_fusion_uses_what_another_crop_saw():
    """The zoomed copy sees only the upper left quarter; there, and only there, it changes copy 0."""
    p = torch.zeros(2, 2, 8, 8)
    p[0, 0], p[1, 1] = 1, 1                                                    # they disagree everywhere
    a, b = affines([1.0, 0.5], [[0.0, 0.0], [-1.0, -1.0]], [False, False])
    fused, _ = fuse_views(p, a, b, no_padding(2, 8, 8), 2)
    assert torch.allclose(fused[0, 0, :3, :3], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(fused[0, 0, 5:, 5:], torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(fused[1, :, :4, :4], torch.tensor(0.5), atol=1e-5)


def test_fusion_all_padding_crop():
    """A padded crop adds nothing to the others and gets no prediction itself."""
    p = probabilities(2)
    padding = no_padding(2)
    padding[1] = True
    fused, valid = fuse_views(p, *whole_views(False, False), padding, 2)
    assert valid[0].all() and not valid[1].any()
    assert torch.allclose(fused[0], p[0], atol=1e-6) and (fused[1] == 0).all()


def test_fusion_at_low_resolution():
    """The affines are normalised: fusing small maps is near fusing large ones."""
    torch.manual_seed(0)
    views = multi_view_crops(torch.rand(1, 3, 64, 96), n_views=3)
    p = torch.nn.functional.interpolate(torch.randn(1, 4, 3, 4), (64, 96), mode="bicubic").softmax(1)
    p = warp(p.expand(3, -1, -1, -1), views.inverse, padding_mode="border")
    large, _ = fuse_views(p, views.affine, views.inverse, views.padding, 3)
    small, valid = fuse_views(
        torch.nn.functional.avg_pool2d(p, 4), views.affine, views.inverse, views.padding, 3
    )
    assert small.shape[-2:] == (16, 24) and valid.all()
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().max() < 0.03


def test_fusion_of_small_maps_drops_what_touches_padding():
    padding = no_padding(1, 20, 24)
    padding[0, 0, 23] = True                                                   # one of 4 x 4 pixels
    _, valid = fuse_views(probabilities(1), *whole_views(False), padding, 1)
    expected = torch.ones(1, 5, 6, dtype=torch.bool)
    expected[0, 0, 5] = False
    assert torch.equal(valid, expected)


def test_fusion_needs_whole_groups():
    with pytest.raises(ValueError, match="2 crops cannot be 3 views"):
        fuse_views(probabilities(2), *whole_views(False, False), no_padding(2), 3)


# --- rare classes and quality

def test_rare_class_weights_by_hand():
    ratios = torch.tensor([[10, 0], [30, 0]])                                  # class 1 is never predicted
    result = rare_class_weights(ratios)
    assert result.tolist() == [[0.75 * 0.25 + 0.125, 0.75 * 0.75 + 0.125], [0.5, 0.5]]
    assert ratios.tolist() == [[10, 0], [30, 0]]


def test_draw_rare_class_cycles_and_follows_the_weights():
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0]])
    torch.manual_seed(0)
    drawn = [draw_rare_class(weights, i) for i in range(300)]
    assert set(drawn[0::3]) == {0} and set(drawn[1::3]) == {2} and set(drawn[2::3]) == {0, 1}
    torch.manual_seed(0)
    assert drawn[:6] == [draw_rare_class(weights, i) for i in range(6)]


def test_quality_by_hand():
    labels = torch.tensor([[0, 1, VOID, 2]])
    coverage, accuracy = pseudo_label_quality(labels, torch.tensor([[0, 2, 1, VOID]]))
    assert coverage.item() == pytest.approx(2 / 3) and accuracy.item() == pytest.approx(1 / 2)
    coverage, accuracy = pseudo_label_quality(torch.full((1, 4), VOID), torch.zeros(1, 4, dtype=torch.long))
    assert coverage.item() == 0 and accuracy.isnan()
