"""Views: values, geometry worked out by hand, agreement with torchvision, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tvf

from panolib.data.photometry import (
    IMAGENET_MEAN,
    adjust_colours,
    denormalise,
    gaussian_blur,
    normalise,
    photometric_noise,
)
from panolib.data.views import multi_view_crops, train_view, view_affines
from panolib.data.warping import (
    compose_affines,
    rotate,
    rotation_validity,
    sampling_grid,
    unrotate,
    warp,
    warp_labels,
)
from panolib.labels import VOID


def picture(height=24, width=40, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def label_maps(height=24, width=40):
    ids = torch.arange(height * width).view(height, width)
    return {
        "semantic": (ids % 19).to(torch.uint8),
        "instance": (ids + 2**25).to(torch.int32),       # beyond what float32 holds exactly
        "crowd": ids % 7 == 0,
    }


def no_colour():
    return {"jitter": 0.0, "hue": 0.0}


# --- values

def test_normalise_uint8_and_float_agree_and_invert():
    image = picture()
    result = normalise(image)
    assert result.dtype == torch.float32
    assert torch.equal(result, normalise(image.float() / 255))
    assert torch.allclose(denormalise(result) * 255, image.float(), atol=1e-3)
    expected = tvf.normalize(image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(result, expected, atol=1e-6)


def test_adjust_colours_equals_torchvision_per_image():
    images = torch.rand(4, 3, 9, 11)
    images[3, :, :4] = 0.5                                                     # grey: no hue
    factors = torch.tensor([[0.6, 1.3, 0.7, 0.1], [1.4, 0.6, 1.4, -0.3], [1, 1, 1, 0.5], [1.1, 0.9, 0, 0.2]])
    result = adjust_colours(images, *factors.T)
    for image, (b, c, s, h), got in zip(images, factors.tolist(), result):
        image = tvf.adjust_saturation(tvf.adjust_contrast(tvf.adjust_brightness(image, b), c), s)
        assert torch.allclose(got, tvf.adjust_hue(image, h), atol=1e-5)


def test_adjust_colours_neutral():
    images = torch.rand(2, 3, 5, 6)
    one = torch.ones(2)
    assert torch.allclose(adjust_colours(images, one, one, one, 0 * one), images, atol=1e-6)


def test_gaussian_blur_equals_torchvision_inside():
    images = torch.rand(2, 3, 30, 32)
    result = gaussian_blur(images, torch.tensor([0.5, 2.0]), max_sigma=2.0)
    for image, sigma, got in zip(images, (0.5, 2.0), result):
        expected = tvf.gaussian_blur(image, [13, 13], [sigma, sigma])
        assert torch.allclose(got[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6], atol=1e-5)
    flat = torch.full((1, 3, 4, 1), 0.3)                                       # smaller than the kernel
    assert torch.allclose(gaussian_blur(flat, torch.tensor([2.0]), max_sigma=2.0), flat, atol=1e-6)


def test_photometric_noise_draws_per_image_and_keeps_range():
    torch.manual_seed(3)
    image = torch.rand(3, 16, 16)
    result = photometric_noise(image.expand(8, 3, 16, 16))
    assert result.shape == (8, 3, 16, 16) and result.min() >= 0 and result.max() <= 1
    assert len({tuple(r.flatten().tolist()) for r in result}) == 8
    assert photometric_noise(image).shape == image.shape


def test_photometric_noise_switches():
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(photometric_noise(image, jitter=0, hue=0, grayscale=0, blur=None), image)
    grey = photometric_noise(image, jitter=0, hue=0, grayscale=1, blur=None)
    assert torch.allclose(grey[:, 0], grey[:, 1]) and torch.allclose(grey[:, 0], grey[:, 2])
    never = photometric_noise(image, jitter_probability=0, grayscale=0, blur=None)
    assert torch.allclose(never, image, atol=1e-6)


# --- joint augmentation

def test_train_view_whole_window_is_the_image():
    image, maps = picture(), label_maps()
    view, labels = train_view(image, maps, size=(24, 40), scale=(1, 1), hflip=0, **no_colour())
    assert torch.allclose(view, image / 255)
    assert torch.equal(labels["semantic"], maps["semantic"].long())
    assert torch.equal(labels["instance"], maps["instance"].long())
    assert torch.equal(labels["crowd"], maps["crowd"])
    assert [labels[name].dtype for name in maps] == [torch.int64, torch.int64, torch.bool]


def test_train_view_flips_image_and_labels_exactly():
    image, maps = picture(), label_maps()
    view, labels = train_view(image, maps, size=(24, 40), scale=(1, 1), hflip=1, **no_colour())
    assert torch.allclose(view, image.flip(-1) / 255)
    assert torch.equal(labels["instance"], maps["instance"].long().flip(-1))


def test_train_view_image_and_labels_stay_aligned():
    """An image that shows its own labels does so after any view, but for the pixels at edges."""
    semantic = torch.zeros(64, 96, dtype=torch.uint8)
    semantic[20:50, 30:70] = 1
    image = (semantic * 255).expand(3, -1, -1).contiguous()
    for seed in range(20):
        torch.manual_seed(seed)
        view, labels = train_view(image, {"semantic": semantic}, size=(48, 64), scale=(0.3, 1), **no_colour())
        shown = view[0] > 0.5
        assert (shown != (labels["semantic"] == 1)).float().mean() < 0.02


def test_train_view_small_image_is_padded():
    """Scale 0.5 of the image in a canvas of its own size: a quarter is image, the rest padding."""
    image, maps = picture(), label_maps()
    torch.manual_seed(0)
    view, labels = train_view(image, maps, size=(24, 40), scale=(0.5, 0.5), scale_of="image", **no_colour())
    padded = labels["semantic"] == VOID
    assert padded.sum() == 24 * 40 - 12 * 20
    assert (labels["instance"][padded] == 0).all() and not labels["crowd"][padded].any()
    assert (labels["instance"][~padded] > 0).all()
    assert (normalise(view)[:, padded] == 0).all()
    assert torch.equal(padded, (view == torch.tensor(IMAGENET_MEAN)[:, None, None]).all(0))


def test_train_view_scale_of_image_magnifies():
    semantic = torch.arange(8)[:, None].expand(8, 8).to(torch.uint8)
    _, labels = train_view(
        torch.zeros(3, 8, 8), {"semantic": semantic}, size=(8, 8), scale=(2, 2), scale_of="image"
    )
    rows = labels["semantic"][:, 0]
    assert torch.equal(rows, torch.arange(4).repeat_interleave(2) + rows[0])


def test_train_view_shrinks_without_aliasing():
    """Stripes finer than a pixel of the view become grey, whatever lies at its centre."""
    image = torch.zeros(3, 64, 64)
    image[:, :, 0::4] = image[:, :, 3::4] = 1
    view, _ = train_view(image, {}, size=(16, 16), scale=(1, 1), **no_colour())
    assert (view - 0.5).abs().max() < 0.1


def test_train_view_hue_follows_jitter_unless_given():
    """A pure red image keeps its hue only when hue is switched off."""
    image = torch.tensor([0.8, 0.1, 0.1])[:, None, None].expand(3, 4, 4)
    options = {"size": (4, 4), "jitter": 0.3, "jitter_probability": 1.0}
    torch.manual_seed(0)
    kept = torch.stack([train_view(image, {}, hue=0.0, **options)[0] for _ in range(10)])
    turned = torch.stack([train_view(image, {}, **options)[0] for _ in range(10)])
    assert (kept[:, 1] - kept[:, 2]).abs().max() < 1e-6
    assert (turned[:, 1] - turned[:, 2]).abs().max() > 0.1


def test_train_view_other_size_and_no_labels():
    view, labels = train_view(picture(), {}, size=(10, 33), blur=(0.1, 1.0))
    assert view.shape == (3, 10, 33) and labels == {}


# --- affine maps

def test_sampling_grid_equals_affine_grid():
    affine = torch.randn(3, 2, 3, dtype=torch.float64)
    expected = F.affine_grid(affine, [3, 1, 5, 7], align_corners=False)
    assert torch.allclose(sampling_grid(affine, (5, 7)), expected, atol=1e-12)


def test_view_affines_by_hand():
    """Half zoom to the right edge, mirrored: crop centre sits at +0.5 of the mirrored canvas."""
    affine, inverse = view_affines(torch.tensor([0.5]), torch.tensor([[1.0, 0.0]]), torch.tensor([True]))
    assert torch.equal(affine, torch.tensor([[[-2.0, 0, -1], [0, 2, 0]]]))
    assert torch.equal(inverse, torch.tensor([[[-0.5, 0, -0.5], [0, 0.5, 0]]]))


def test_compose_affines_by_hand():
    double = torch.tensor([[[2.0, 0, 0], [0, 2, 0]]])
    shift = torch.tensor([[[1.0, 0, 0.25], [0, 1, -0.5]]])
    assert torch.equal(compose_affines(double, shift)[0, :, 2], torch.tensor([0.5, -1.0]))
    assert torch.equal(compose_affines(shift, double)[0, :, 2], torch.tensor([0.25, -0.5]))


def test_warp_half_precision_uses_float32():
    x = torch.rand(1, 1, 4, 4)
    affine = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    assert warp(x.bfloat16(), affine).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(warp(x, affine), x, atol=1e-5)


def test_warp_labels_large_ids_and_fill():
    labels = label_maps()["instance"][None]
    shift = torch.tensor([[[1.0, 0, 2 * 3 / 40], [0, 1, 0]]])                  # three pixels to the left
    result = warp_labels(labels, shift, fill=0)
    assert result.dtype == labels.dtype
    assert torch.equal(result[..., :-3], labels[..., 3:]) and (result[..., -3:] == 0).all()


# --- crops

def test_copy_zero_covers_the_canvas():
    images = torch.rand(2, 3, 12, 20)
    views = multi_view_crops(images, n_views=3, reference_scale=(1, 1), hflip=0)
    assert torch.allclose(views.clean[0::3], images, atol=1e-5)
    assert views.clean.shape == (6, 3, 12, 20) and views.n_views == 3 and not views.padding.any()


def test_crops_are_windows_of_the_canvas():
    torch.manual_seed(1)
    smooth = F.interpolate(torch.rand(2, 3, 4, 6), (64, 96), mode="bicubic")
    views = multi_view_crops(smooth, n_views=4, hflip=0.5)
    canvas = warp(views.clean[0::4], views.affine[0::4], padding_mode="border")
    again = warp(canvas.repeat_interleave(4, 0), views.inverse, padding_mode="border")
    assert (again - views.clean).abs().max() < 0.02


def test_padding_marks_the_outside():
    images = torch.ones(1, 3, 20, 20)
    torch.manual_seed(0)
    views = multi_view_crops(images, n_views=2, reference_scale=(0.5, 0.5))
    assert views.padding[0].sum() == 300                                       # a quarter is image
    assert (normalise(views.clean)[views.padding[:, None].expand(-1, 3, -1, -1)] == 0).all()
    assert torch.allclose(views.clean.movedim(1, -1)[~views.padding], torch.tensor(1.0))
    labels = warp_labels(torch.zeros(2, 20, 20, dtype=torch.uint8), views.sampling)
    assert torch.equal(labels == VOID, views.padding)


@pytest.mark.parametrize("blur", [None, (0.0, 0.0), (0.0, 1e-30)])
def test_no_blur_leaves_the_image(blur):
    image = torch.rand(2, 3, 16, 16)
    noisy = photometric_noise(image, jitter_probability=0.0, grayscale=0.0, blur=blur)
    torch.testing.assert_close(noisy, image, atol=1e-6, rtol=0)


# --- rotation

def test_rotate_quarter_turns_are_exact():
    image = torch.rand(3, 2, 8, 8)
    result = rotate(image, torch.tensor([0.0, 90.0, 180.0]))
    for turn in range(3):
        assert torch.allclose(result[turn], torch.rot90(image[turn], turn, (1, 2)), atol=1e-5)
    assert torch.allclose(unrotate(result, torch.tensor([0.0, 90.0, 180.0])), image, atol=1e-5)
    assert rotation_validity((8, 8), torch.tensor([0.0, 90.0, 180.0])).all()


def test_rotation_validity_of_a_wide_canvas():
    """A quarter turn of a 4 x 8 canvas keeps only the middle 4 x 4."""
    valid = rotation_validity((4, 8), 90.0)
    assert valid.shape == (1, 4, 8)
    assert valid[0, :, 2:6].all() and not valid[0, :, :2].any() and not valid[0, :, 6:].any()
