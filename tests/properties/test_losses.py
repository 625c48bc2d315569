from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panolib.lab.measuring import with_peak_memory
from panolib.labels import VOID
from panolib.losses import instance_sums, plain, soft_masks
from panolib.losses.consistency import draw_anchors
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.losses.semantic import cross_entropy, self_training_loss

NOTHING = EmbeddingLossWeights(0, 0, 0, 0, 0, 0)


def term(name):
    """One term for one image, of weight 1."""

    def loss(embeddings, labels, *, ignore=None, **margins):
        ignore = None if ignore is None else ignore[None]
        weights = dataclasses.replace(NOTHING, **{name: 1.0})
        return embedding_loss(embeddings[None], labels[None], weights=weights, ignore=ignore, **margins)[name]

    return loss


def consistency_loss(student, teacher, labels, valid=None, *, ignore=None):
    views = {"teacher_embeddings": teacher[None], "valid": None if valid is None else valid[None]}
    return term("consistency")(student, labels, ignore=ignore, **views)


TERMS = {name: term(name) for name in ("pull", "push", "regulariser", "object_dice", "unlabelled_push")}
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=15, deadline=None)


def scene(seed, n_images=1):
    """Float64 embeddings [B, 4, 6, 8] and labels with 0 .. 5 instances of arbitrary ids."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n_images, 4, 6, 8, generator=generator, dtype=torch.float64)
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(900, generator=generator)[:5] + 1])
    n_ids = int(torch.randint(1, 7, (1,), generator=generator))
    labels = ids[torch.randint(n_ids, (n_images, 6, 8), generator=generator)]
    return embeddings, labels


# --- properties of the instance terms ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TERMS if name != "regulariser"])
@given(seed=seeds)
@few
def test_shifting_all_embeddings_changes_nothing(name, seed):
    (embeddings,), (labels,) = scene(seed)
    shift = torch.tensor([3.0, -7.0, 0.5, 20.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(TERMS[name](embeddings + shift, labels), TERMS[name](embeddings, labels))


@given(seed=seeds)
@few
def test_shifting_both_views_leaves_the_consistency(seed):
    (embeddings,), (labels,) = scene(seed)
    teacher = embeddings.flip(0) * 0.3 + embeddings
    values = []
    for shift in (0.0, 4.0):                                # a power of two, so that no distance is rounded
        torch.manual_seed(seed)
        values.append(consistency_loss(embeddings + shift, teacher - shift, labels))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", TERMS)
@given(seed=seeds)
@few
def test_renaming_ids_changes_nothing(name, seed):
    (embeddings,), (labels,) = scene(seed)
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(1000, generator=generator) + 1
    names[0] = 0
    torch.testing.assert_close(TERMS[name](embeddings, names[labels]), TERMS[name](embeddings, labels))


@pytest.mark.parametrize("name", TERMS)
@given(seed=seeds)
@few
def test_order_of_pixels_changes_nothing(name, seed):
    (embeddings,), (labels,) = scene(seed)
    flipped = TERMS[name](embeddings.flip(-1), labels.flip(-1))
    torch.testing.assert_close(flipped, TERMS[name](embeddings, labels))


@pytest.mark.parametrize("name", TERMS)
def test_no_instance_gives_zero_with_zero_gradient(name):
    embeddings = torch.randn(4, 6, 8, requires_grad=True)
    for ignore in (None, torch.ones(6, 8, dtype=torch.bool)):
        labels = torch.zeros(6, 8, dtype=torch.int64) if ignore is None else torch.full((6, 8), 3)
        loss = TERMS[name](embeddings, labels, ignore=ignore)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_no_unlabelled_pixel_gives_zero_with_zero_gradient():
    embeddings = torch.randn(4, 6, 8, requires_grad=True)
    labels = torch.full((6, 8), 3)
    same = consistency_loss(embeddings, embeddings, labels)
    for loss in (TERMS["unlabelled_push"](embeddings, labels), same):
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", TERMS)
@given(seed=seeds)
@few
def test_ignored_pixels_have_no_part(name, seed):
    (embeddings,), (labels,) = scene(seed)
    ignore = torch.zeros(6, 8, dtype=torch.bool)
    ignore[2:4] = True
    disturbed = embeddings.clone()
    disturbed[:, 2:4] = 50.0
    disturbed.requires_grad_()
    other_labels = labels.clone()
    other_labels[2:4] = 77
    loss = TERMS[name](disturbed, other_labels, ignore=ignore)
    torch.testing.assert_close(loss, TERMS[name](embeddings, labels, ignore=ignore))
    (gradient,) = torch.autograd.grad(loss, disturbed)
    assert not gradient[:, 2:4].any()


@pytest.mark.parametrize("name", TERMS)
def test_constant_embeddings_have_finite_gradients(name):
    """Every distance is 0: all means coincide, all pixels lie on them."""
    embeddings = torch.zeros(4, 6, 8, requires_grad=True)
    labels = torch.arange(48).reshape(6, 8) % 5
    (gradient,) = torch.autograd.grad(TERMS[name](embeddings, labels), embeddings)
    assert gradient.isfinite().all()


def test_half_precision_is_computed_in_float32():
    (embeddings,), (labels,) = scene(3)
    half = embeddings.to(torch.bfloat16).requires_grad_()
    for name, term in TERMS.items():
        loss = term(half, labels)
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, term(half.detach().float(), labels))
        (gradient,) = torch.autograd.grad(loss, half)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_a_far_pixel_costs_the_others_no_precision_in_float32(name):
    (embeddings,), (labels,) = scene(5)
    embeddings = embeddings.clone()
    embeddings[:, 0, 0] = 500.0
    ignore = torch.zeros_like(labels, dtype=torch.bool)
    ignore[0, 0] = True
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = embeddings.to(dtype).requires_grad_()
        loss = TERMS[name](leaf, labels, ignore=ignore)
        found.append((loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()))
    for ours, exact in zip(*found):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-4)


def test_pixels_far_from_means_that_are_far_apart_cost_no_push():
    """What rounding hides among such means is more than the margin; these pixels are further away."""
    embeddings = torch.zeros(2, 1, 6)
    embeddings[0] = torch.tensor([[-4000.0, -4000.0, 4000.0, 4000.0, 0.0, 2000.0]])
    labels = torch.tensor([[1, 1, 2, 2, 0, 0]])
    assert TERMS["unlabelled_push"](embeddings, labels).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_semantic_losses_of_half_precision_are_computed_in_float32(dtype):
    logits = torch.zeros(1, 2, 300, 300, dtype=dtype)
    logits[:, 0] = 9.0
    labels = torch.ones(1, 300, 300, dtype=torch.int64)  # the sum is 810,000; float16 ends at 65,504
    confidence, prior = torch.ones(1, 300, 300), torch.zeros(2)
    leaf = logits.requires_grad_()
    for loss in (cross_entropy(leaf, labels), self_training_loss(leaf, labels, confidence, prior)):
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(9, rel=1e-3)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert gradient.isfinite().all()


# --- by hand -----------------------------------------------------------------------------------------------


def test_hand_computed_case():
    """Means (0, 0) and (3, 0); pixel distances 1, 1 and 0; one unlabelled pixel at (0, 1)."""
    embeddings = torch.tensor([[[1.0, -1.0, 3.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    labels = torch.tensor([[7, 7, 2, 0]])
    # The kernel is 2 ** -(4 d^2): 1/2 at d = 0.5.
    seven = 1 - 2 * (2 / 16) / ((1 / 256 + 1 / 256 + 2.0**-72 + 1 / 256) + 2)
    two = 1 - 2 * 1 / ((2.0**-32 + 2.0**-128 + 1 + 2.0**-80) + 1)
    rows = embeddings[:, 0].T, labels[0]
    for name, formula, expected in (
        ("pull", plain.pull_loss, (0.5**2 + 0.0) / 2),
        ("push", plain.push_loss, (4 - 3) ** 2),
        ("regulariser", plain.regulariser, (0 + 3) / 2),
        ("object_dice", plain.object_dice_loss, (seven + two) / 2),
        ("unlabelled_push", plain.unlabelled_push_loss, ((2 - 1) ** 2 + 0) / 2),
    ):
        assert TERMS[name](embeddings, labels).item() == pytest.approx(expected), name
        assert formula(*rows).item() == pytest.approx(expected), name


def test_perfect_embeddings_cost_only_the_regulariser():
    labels = torch.tensor([[1, 1, 2, 2, 0, 0]])
    embeddings = torch.tensor([[[5.0, 5.0, -5.0, -5.0, 0.0, 0.0]]])
    for name, term in TERMS.items():
        expected = 5.0 if name == "regulariser" else 0.0
        assert term(embeddings, labels).item() == pytest.approx(expected, abs=1e-6), name


def test_large_and_small_instances_count_the_same():
    """Per-instance Dice; SPOCO's release pools them, which the large one dominates."""
    labels = torch.ones(10, 10, dtype=torch.int64)
    labels[0, 0] = 2
    embeddings = torch.zeros(1, 10, 10)                     # the small instance is not separated at all
    missed = 1 - 2 * 1 / (100 + 1)
    assert TERMS["object_dice"](embeddings, labels).item() == pytest.approx((missed + 1 - 2 * 99 / 199) / 2)


# --- consistency -------------------------------------------------------------------------------------------


@given(seed=seeds)
@few
def test_anchors_lie_on_candidates_and_apart(seed):
    (student,), (labels,) = scene(seed)
    student, candidates = student.flatten(1), labels.flatten() == 0
    torch.manual_seed(seed)
    teacher = student + 0.3 * torch.randn_like(student)
    anchors = draw_anchors(student, teacher, candidates, delta_var=1.0, max_anchors=7)
    assert len(anchors) <= 7
    assert (len(anchors) > 0) == (candidates.sum().item() >= 0.05 * 48)
    assert candidates[anchors].all()
    for field in (student, teacher):
        apart = torch.cdist(field[:, anchors].T, field[:, anchors].T)
        assert (apart[~torch.eye(len(anchors), dtype=torch.bool)] >= 1.0).all()
    if len(anchors) < 7:                                    # then what is left is below 5 %
        near = [torch.cdist(f[:, anchors].T, f.T).lt(1.0).any(dim=0) for f in (student, teacher)]
        assert (candidates & ~near[0] & ~near[1]).sum() < 0.05 * 48


def test_every_candidate_is_drawn_equally_often():
    torch.manual_seed(0)
    field = torch.tensor([[0.0, 9.0, 18.0, 27.0]])
    candidates = torch.tensor([True, False, True, True])
    counts = torch.zeros(2, 4)
    for _ in range(900):
        anchors = draw_anchors(field, field, candidates, delta_var=0.5, max_anchors=2)
        counts[0, anchors[0]] += 1
        counts[1, anchors[1]] += 1
    assert not counts[:, 1].any()
    assert ((counts[:, candidates] - 300).abs() < 71).all()            # five standard deviations


def test_equal_views_are_consistent_and_different_ones_are_not():
    student = scene(4)[0][0] * 0.3
    labels = torch.zeros(6, 8, dtype=torch.int64)
    assert consistency_loss(student, student, labels).item() == pytest.approx(0.0, abs=1e-12)
    assert consistency_loss(student, student.flip(-1), labels).item() > 0.1


def test_one_dice_per_anchor():
    """Two anchors, one consistent, one not: (0 + miss) / 2, whatever the rows of the image."""
    student = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 0.0, 9.0, 27.0]]])
    labels = torch.zeros(1, 4, dtype=torch.int64)
    for seed in range(5):
        torch.manual_seed(seed)
        loss = consistency_loss(student, teacher, labels)
        assert loss.item() == pytest.approx((0 + (1 - 2 * 1 / 3)) / 2, abs=1e-6)


def test_pixels_off_the_canvas_have_no_part():
    (student,), _ = scene(4)
    labels = torch.zeros(6, 8, dtype=torch.int64)
    valid = torch.ones(6, 8, dtype=torch.bool)
    valid[:, :3] = False
    losses = []
    for filler in (0.0, 30.0):
        teacher = student * 1.2
        teacher[:, :, :3] = filler
        torch.manual_seed(0)
        losses.append(consistency_loss(student, teacher, labels, valid))
    assert losses[0] == losses[1] > 0


# --- the weighted sum --------------------------------------------------------------------------------------


def all_terms(weights, **options):
    embeddings, _ = scene(11, n_images=2)
    labels = torch.zeros(2, 6, 8, dtype=torch.int64)
    labels[0, :2], labels[0, 2, :5], labels[1, 3:5] = 4, 9, 1
    torch.manual_seed(0)
    return embedding_loss(
        embeddings, labels, weights=weights, teacher_embeddings=embeddings.flip(-1), **options
    )


@pytest.mark.parametrize("name", [*TERMS, "consistency"])
def test_changing_each_weight_changes_the_loss(name):
    weights = EmbeddingLossWeights()
    base = all_terms(weights)
    doubled = all_terms(dataclasses.replace(weights, **{name: 2 * getattr(weights, name)}))
    assert base[name] > 0
    torch.testing.assert_close(doubled[name], 2 * base[name])
    assert sum(doubled.values()) > sum(base.values())
    assert all(torch.equal(doubled[other], base[other]) for other in base if other != name)
    without = all_terms(dataclasses.replace(weights, **{name: 0.0}))
    assert set(without) == set(base) - {name}


def test_the_consistency_of_a_batch_is_a_mean_or_as_in_spoco_a_sum():
    mean = EmbeddingLossWeights()
    summed = all_terms(dataclasses.replace(mean, consistency_reduction="sum"))
    base = all_terms(mean)
    torch.testing.assert_close(summed["consistency"], 2 * base["consistency"])  # two images
    assert all(torch.equal(summed[name], base[name]) for name in base if name != "consistency")
    with pytest.raises(ValueError, match=r"consistency_reduction\n.* should be 'mean' or 'sum' .*'median'"):
        EmbeddingLossWeights(consistency_reduction="median")


@pytest.mark.parametrize(
    "margins", [{"delta_var": 0.0}, {"delta_dist": 0.0}, {"delta_var": 0.0, "delta_dist": 0.0}]
)
def test_a_margin_of_zero_switches_off_and_is_finite(margins):
    embeddings, _ = scene(3, n_images=2)
    embeddings = embeddings.clone().requires_grad_()
    labels = torch.zeros(2, 6, 8, dtype=torch.int64)
    labels[0, :2], labels[0, 2, :5], labels[1, 3:5] = 4, 9, 1
    weights = EmbeddingLossWeights(object_dice=0.0, consistency=0.0)
    terms = embedding_loss(embeddings, labels, weights=weights, **margins)
    sum(terms.values()).backward()
    assert embeddings.grad.isfinite().all()
    if "delta_dist" in margins:
        assert terms["push"] == terms["unlabelled_push"] == 0
    if "delta_var" in margins:  # every pixel is pulled
        assert terms["pull"] > embedding_loss(embeddings, labels, weights=weights)["pull"]
        with pytest.raises(ValueError, match="the kernel of object Dice and consistency needs"):
            embedding_loss(embeddings, labels, weights=EmbeddingLossWeights(consistency=0.0), **margins)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"delta_var": 0.8}, {"pull", "object_dice", "consistency"}),
        ({"delta_dist": 1.5}, {"push", "unlabelled_push"}),
        ({"kernel_threshold": 0.7}, {"object_dice", "consistency"}),
    ],
)
def test_each_margin_reaches_its_terms(option, changed):
    base, other = all_terms(EmbeddingLossWeights()), all_terms(EmbeddingLossWeights(), **option)
    assert {name for name in base if not torch.equal(base[name], other[name])} == changed


def test_consistency_needs_a_teacher():
    embeddings, labels = scene(1)
    terms = embedding_loss(embeddings, labels, weights=EmbeddingLossWeights(consistency=1.0))
    assert "consistency" not in terms and len(terms) == 5


def test_misspelt_and_impossible_weights_are_refused():
    with pytest.raises(ValueError, match="consistancy"):
        EmbeddingLossWeights(consistancy=0.1)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"push\n.*input_value={bad}"):
            EmbeddingLossWeights(push=bad)


def test_inputs_are_left_alone():
    embeddings, labels = scene(5, n_images=2)
    copies = embeddings.clone(), labels.clone()
    ignore = torch.rand(2, 6, 8) < 0.3
    embedding_loss(
        embeddings, labels, weights=EmbeddingLossWeights(), ignore=ignore, teacher_embeddings=embeddings
    )
    assert torch.equal(embeddings, copies[0]) and torch.equal(labels, copies[1])


def test_bad_input_is_named():
    embeddings, labels = torch.zeros(4, 6, 8), torch.zeros(6, 8, dtype=torch.int64)
    mask = torch.zeros(6, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"instance_labels has shape \(1, 6, 7\), expected \(1, 6, 8\)"):
        TERMS["pull"](embeddings, labels[:, :7])
    with pytest.raises(ValueError, match="ignore has shape"):
        TERMS["push"](embeddings, labels, ignore=mask)
    with pytest.raises(ValueError, match="valid has shape"):
        consistency_loss(embeddings, embeddings, labels, mask)
    with pytest.raises(ValueError, match="teacher_embeddings has shape"):
        consistency_loss(embeddings, embeddings[:3], labels)
    with pytest.raises(ValueError, match=r"expected \[B, C, H, W\]"):
        TERMS["regulariser"](embeddings[None], labels)
    with pytest.raises(ValueError, match="the id -1"):
        TERMS["pull"](embeddings, labels - 1)
    with pytest.raises(ValueError, match="integer type"):
        TERMS["pull"](embeddings, labels.float())
    with pytest.raises(ValueError, match="kernel_threshold=1"):
        TERMS["object_dice"](embeddings, labels, kernel_threshold=1.0)
    with pytest.raises(ValueError, match=r"ignore has shape \(1, 6, 8\), expected \(2, 6, 8\)"):
        embedding_loss(
            torch.zeros(2, 4, 6, 8), torch.zeros(2, 6, 8, dtype=torch.int64),
            weights=EmbeddingLossWeights(), ignore=torch.zeros(1, 6, 8, dtype=torch.bool),
        )


# --- semantic losses ---------------------------------------------------------------------------------------


def test_cross_entropy_counts_void_pixels_in_the_mean():
    logits = torch.zeros(1, 4, 1, 2)
    assert cross_entropy(logits, torch.tensor([[[1, 2]]])).item() == pytest.approx(math.log(4))
    assert cross_entropy(logits, torch.tensor([[[1, VOID]]])).item() == pytest.approx(math.log(4) / 2)


def test_all_void_gives_zero_with_zero_gradient():
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    labels = torch.full((2, 3, 3), VOID)
    confidence, prior = torch.ones(2, 3, 3), torch.full((4,), 0.25)
    for loss in (cross_entropy(logits, labels), self_training_loss(logits, labels, confidence, prior)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0.0 and not gradient.any()


def test_self_training_is_cross_entropy_when_sure_and_all_classes_are_rare():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    plain = cross_entropy(logits, labels)
    sure, rare = torch.ones(2, 3, 3), torch.zeros(4)
    torch.testing.assert_close(self_training_loss(logits, labels, sure, rare), plain)
    torch.testing.assert_close(self_training_loss(logits, labels, sure / 2, rare), plain / 2)
    half = torch.full((4,), 0.5)
    torch.testing.assert_close(self_training_loss(logits, labels, sure, half), plain / 8)
    torch.testing.assert_close(self_training_loss(logits, labels, sure, half, focal_exponent=0), plain)


def test_each_image_keeps_its_own_confidence():
    """SAC's [B, 1, H, W] confidence would weigh every image by every other's."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    confidence, prior = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)]), torch.zeros(4)
    loss = self_training_loss(logits, labels, confidence, prior)
    torch.testing.assert_close(loss, cross_entropy(logits[:1], labels[:1]) / 2)
    with pytest.raises(ValueError, match=r"confidence has shape \(2, 1, 3, 3\)"):
        self_training_loss(logits, labels, confidence[:, None], prior)


def test_no_gradient_reaches_confidence_and_prior():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    confidence, prior = torch.rand(1, 2, 2, requires_grad=True), torch.rand(2, requires_grad=True)
    self_training_loss(logits, torch.ones(1, 2, 2, dtype=torch.int64), confidence, prior).backward()
    assert logits.grad.any() and confidence.grad is None and prior.grad is None


def test_semantic_shapes_are_checked():
    logits, labels = torch.zeros(1, 4, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"semantic_labels has shape \(1, 3, 2\), expected \(1, 3, 3\)"):
        cross_entropy(logits, labels[..., :2])
    with pytest.raises(ValueError, match="class_prior has shape"):
        self_training_loss(logits, labels, torch.ones(1, 3, 3), torch.zeros(3))


# --- instances that are far from a part of the image -------------------------------------------------------


@pytest.mark.parametrize("name", ["object_dice", "unlabelled_push", "consistency"])
@pytest.mark.parametrize("ignored", [False, True])
def test_leaving_far_instances_out_of_a_block_changes_nothing(name, ignored, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(40).view(12, 20)  # some rows each; 0 is unlabelled
    means = 1.5 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(4, 12, 20, generator=generator, dtype=torch.float64)
    embeddings = means[labels].movedim(-1, 0) + noise
    ignore = torch.rand(12, 20, generator=generator) < 0.2 if ignored else None
    kept = []

    def value_and_gradient():
        leaf = embeddings.clone().requires_grad_()
        if name == "consistency":
            torch.manual_seed(0)  # anchors
            teacher = embeddings + 0.3 * noise.flip(0)
            value = consistency_loss(leaf, teacher, 0 * labels, ignore=ignore)
        else:
            value = TERMS[name](leaf, labels, ignore=ignore)
        return value, *torch.autograd.grad(value, leaf)

    def watched(near, rows_of=soft_masks.rows_of):
        kept.append(int(near.sum()) / max(len(near), 1))
        return rows_of(near)

    monkeypatch.setattr(soft_masks, "rows_of", watched)
    monkeypatch.setattr(instance_sums, "rows_of", watched)
    whole = value_and_gradient()
    assert kept[0] == 1.0 and len(kept) <= 3  # one block: every instance is near to itself
    monkeypatch.setattr(soft_masks, "BLOCK", 5 * 20)
    in_blocks = value_and_gradient()
    assert len(kept) > 5 and min(kept) < 0.7
    for one, other in zip(whole, in_blocks):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["object_dice", "unlabelled_push", "consistency"])
def test_a_pixel_that_is_not_a_number_is_never_left_out(name):
    (embeddings,), (labels,) = scene(3)
    embeddings[:, 2, 3] = math.nan
    if name == "consistency":
        value = consistency_loss(embeddings, embeddings, 0 * labels)
    else:
        value = TERMS[name](embeddings, labels)
    assert torch.isnan(value)


# --- what they cost ----------------------------------------------------------------------------------------


def discs(n_instances, size=(256, 256), dim=8, apart=4.0):
    """Labels of a grid of squares, and float32 embeddings whose means are corners of cubes."""
    height, width = size
    side = math.ceil(n_instances**0.5)
    y, x = torch.arange(height) * side // height, torch.arange(width) * side // width
    labels = (y[:, None] * side + x + 1).clamp(max=n_instances) * (torch.arange(width) % 4 > 0)
    corners = torch.tensor([[k // 3**d % 3 for d in range(dim)] for k in range(n_instances + 1)])
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(dim, height, width, generator=generator)
    return (apart * corners[labels].movedim(-1, 0) + noise).requires_grad_(), labels


def all_of(embeddings, labels):
    weights = EmbeddingLossWeights(consistency=1.0)
    teacher = embeddings.detach()[None] + 0.01
    return sum(embedding_loss(embeddings[None], labels[None], weights=weights,
                              teacher_embeddings=teacher).values())  # fmt: skip


def test_memory_does_not_grow_with_the_number_of_instances():
    """Masks of 121 instances would take 30 MiB each."""
    found = []
    for n_instances in (4, 121):
        embeddings, labels = discs(n_instances)
        torch.autograd.grad(all_of(embeddings, labels), embeddings)  # libraries take their buffers
        _, mib = with_peak_memory(lambda: torch.autograd.grad(all_of(embeddings, labels), embeddings))  # noqa: B023
        found.append(mib)
    assert math.isnan(found[0]) or found[1] < found[0] + 6


@pytest.mark.parametrize("apart", [0.0, 4.0, 400.0])
def test_no_product_meets_numbers_that_are_not_normal(apart, monkeypatch):
    """Processors take a hundred times longer for each of them."""
    smallest, seen = torch.finfo(torch.float32).tiny, []

    def watched(block, *gradients, put=soft_masks.PixelBlock.put_gradients):
        for found in block.distances:
            size = found.values.abs()
            seen.append(int(((size > 0) & (size < smallest)).sum()))
        put(block, *gradients)

    monkeypatch.setattr(soft_masks.PixelBlock, "put_gradients", watched)
    embeddings, labels = discs(9, apart=apart)
    torch.autograd.grad(all_of(embeddings, labels), embeddings)
    assert len(seen) > 2 and not any(seen)
