"""Views: what must hold for every draw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from panolib.data.photometry import normalise, photometric_noise
from panolib.data.views import multi_view_crops, train_view, view_affines
from panolib.data.warping import compose_affines, rotate, rotation_validity, unrotate, warp, warp_labels
from panolib.labels import VOID

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)
IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def smooth(n, channels, height, width):
    return F.interpolate(torch.rand(n, channels, 3, 4), (height, width), mode="bicubic", align_corners=False)


@quick
@given(seeds)
def test_affine_and_inverse_are_the_identity(seed):
    torch.manual_seed(seed)
    zoom, offset, flip = 0.2 + torch.rand(16), 2 * torch.rand(16, 2) - 1, torch.rand(16) < 0.5
    affine, inverse = view_affines(zoom, offset, flip)
    for product in (compose_affines(affine, inverse), compose_affines(inverse, affine)):
        assert (product - IDENTITY).abs().max() < 1e-6
    views = multi_view_crops(torch.rand(2, 3, 4, 4), n_views=4)
    assert (compose_affines(views.affine, views.inverse) - IDENTITY).abs().max() < 1e-6


@quick
@given(seeds)
def test_view_then_inverse_is_the_identity(seed):
    """Canvas to crop and back gives the canvas where the crop shows it."""
    torch.manual_seed(seed)
    canvas = smooth(3, 2, 48, 64).repeat_interleave(2, 0)
    views = multi_view_crops(torch.rand(3, 3, 48, 64), n_views=2)
    back = warp(warp(canvas, views.inverse, padding_mode="border"), views.affine)
    seen = warp(torch.ones(6, 1, 48, 64), views.affine) > 0.999
    assert seen.flatten(1).float().mean(1).min() > 0.15                        # zoom 0.5 shows a quarter
    assert ((back - canvas).abs() * seen).max() < 0.02


@quick
@given(seeds)
def test_checkerboard_survives_zoom_and_return(seed):
    """8-pixel squares keep their colour away from their edges."""
    torch.manual_seed(seed)
    y, x = torch.arange(64)[:, None] // 8, torch.arange(64)[None] // 8
    board = ((y + x) % 2).float()[None, None]
    inner = ((torch.arange(64) % 8) > 0) & ((torch.arange(64) % 8) < 7)
    views = multi_view_crops(torch.rand(1, 3, 64, 64), n_views=2)
    affine, inverse = views.affine[1:], views.inverse[1:]
    back = warp(warp(board, inverse), affine)
    seen = (warp(torch.ones_like(board), affine) > 0.999)[0, 0] & inner[:, None] & inner[None]
    assert torch.equal(back[0, 0][seen] > 0.5, board[0, 0][seen] > 0.5)
    # labels: every crop pixel holds the board's value at that place
    labels = warp_labels(board[0].to(torch.uint8), inverse)
    assert torch.equal(labels[0].float(), warp(board, inverse, "nearest")[0, 0])


@quick
@given(seeds)
def test_flips_are_exact(seed):
    torch.manual_seed(seed)
    labels = torch.randint(0, 99, (1, 7, 12))
    affine, inverse = view_affines(torch.ones(1), torch.zeros(1, 2), torch.tensor([True]))
    assert torch.equal(warp_labels(labels, inverse), labels.flip(-1))
    assert torch.equal(warp_labels(labels.flip(-1), affine), labels)
    views = multi_view_crops(torch.rand(1, 3, 7, 12), n_views=1, reference_scale=(1, 1), hflip=1)
    assert torch.equal(warp_labels(labels, views.sampling), labels)            # canvas and copy both mirrored


@quick
@given(seeds, st.sampled_from(["window", "image"]), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_train_view_labels_have_no_new_values(seed, scale_of, size):
    torch.manual_seed(seed)
    image = torch.rand(3, 17, 23) * 0.9
    maps = {
        "semantic": torch.tensor([1, 5, 9, VOID])[torch.randint(0, 4, (17, 23))],
        "instance": torch.tensor([0, 7, 2**24 + 1])[torch.randint(0, 3, (17, 23))],
        "crowd": torch.rand(17, 23) < 0.3,
    }
    view, labels = train_view(image, maps, size=size, scale=(0.4, 2.0), scale_of=scale_of)
    assert view.shape == (3, *size) and view.min() >= 0 and view.max() <= 1
    for name, values in labels.items():
        assert values.shape == size
        assert set(values.unique().tolist()) <= set(maps[name].unique().tolist()) | {0, VOID}
    padding = (normalise(view) == 0).all(0)
    assert (labels["semantic"][padding] == VOID).all() and (labels["instance"][padding] == 0).all()


@quick
@given(seeds)
def test_crop_labels_have_no_new_values_and_void_is_the_padding(seed):
    torch.manual_seed(seed)
    labels = torch.tensor([3, 8, 11])[torch.randint(0, 3, (2, 12, 18))]
    views = multi_view_crops(torch.rand(2, 3, 12, 18), n_views=3, zoom=(0.5, 1.5), reference_scale=(0.6, 1.1))
    cropped = warp_labels(labels.repeat_interleave(3, 0), views.sampling)
    assert set(cropped.unique().tolist()) <= {3, 8, 11, VOID}
    assert torch.equal(cropped == VOID, views.padding)


@quick
@given(seeds)
def test_same_seed_same_result(seed):
    def draw():
        torch.manual_seed(seed)
        image = torch.linspace(0, 1, 3 * 9 * 14).view(3, 9, 14)
        maps = {"semantic": torch.arange(126).view(9, 14)}
        view, labels = train_view(image, maps, size=(8, 8), blur=(0.1, 1))
        views = multi_view_crops(image[None], n_views=3)
        return [view, labels["semantic"], views.clean, views.affine, photometric_noise(views.clean)]

    assert all(torch.equal(a, b) for a, b in zip(draw(), draw()))


@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 90.0, 133.0, 180.0])
def test_unrotate_undoes_rotate_where_valid(degrees):
    torch.manual_seed(0)
    field = smooth(2, 3, 40, 64)
    angle = torch.tensor([degrees, degrees / 2])
    valid = rotation_validity((40, 64), angle)
    assert valid.flatten(1).float().mean(1).min() > 0.3
    back = unrotate(rotate(field, angle), angle)
    assert ((back - field).abs() * valid[:, None]).max() < 0.03
    # a longer stay outside cannot hide: what was cut off comes back as 0
    lost = unrotate(rotate(torch.ones(2, 1, 40, 64), angle), angle)[:, 0] < 0.5
    assert not (lost & valid).any()
