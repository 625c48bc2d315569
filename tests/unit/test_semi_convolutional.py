"""Embeddings with coordinates in them: the network, its keys, losses, rotations, clusterings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from panolib.clustering.algorithms import cluster
from panolib.config import ProfileError, canonical_json, from_mapping
from panolib.data import warping
from panolib.data.photometry import denormalise
from panolib.inference.predict import embed_images
from panolib.losses.embedding import EmbeddingLossWeights, embedding_loss
from panolib.models.coordinates import add_coordinates, coordinate_grid
from panolib.models.encoder import Encoder
from panolib.models.unet import EmbeddingUNet
from panolib.profiles import load_yaml, project_root
from panolib.training.instance_targets import added_coordinates, rotated_view
from panolib.training.setup import build_instance
from panolib.training.specs import EncoderSpec, InstanceNetwork
from panolib.training.teacher import make_teacher, update_teacher

PLAIN = InstanceNetwork(
    encoder=EncoderSpec("test_efficientnet", None), embedding_dim=4, decoder_channels=(8, 8, 8, 8),
    output_stride=2, coordinates="none",
)  # fmt: skip
SEMI = replace(PLAIN, coordinates="embedding", coordinate_length=6.0)
ONLY = EmbeddingLossWeights(0, 0, 0, 0, 0, 0)


# ---- the network


def test_coordinates_are_x_then_y_from_the_middle_over_the_length():
    grid = coordinate_grid((3, 4), 2.0)
    assert grid[0].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 3
    assert grid[1].tolist() == [[-0.5] * 4, [0.0] * 4, [0.5] * 4]


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_a_network_adds_them_to_two_channels_and_nothing_else_changes(size):
    torch.manual_seed(0)
    plain = build_instance(PLAIN).eval()
    semi = build_instance(SEMI).eval()
    semi.load_state_dict(plain.state_dict())  # the same weights and buffers: nothing to load or to average
    image = torch.randn(2, 3, *size)
    offsets, embeddings = plain(image), semi(image)
    added = added_coordinates(SEMI, embeddings)
    assert added_coordinates(PLAIN, offsets) is None
    torch.testing.assert_close(embeddings[:, :2], offsets[:, :2] + added)
    assert torch.equal(embeddings[:, 2:], offsets[:, 2:])


def test_bfloat16_keeps_pixels_of_a_large_image_apart():
    """At 64 units bfloat16 rounds to halves: neighbours would be equal or too far from each other."""
    offsets = torch.zeros(1, 4, 2, 1024, dtype=torch.bfloat16)
    steps = add_coordinates(offsets, 8.0)[0, 0, 0].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 8))
    network = build_instance(SEMI).eval()
    image = torch.randn(1, 3, 32, 800)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embeddings = network(image)
        network.coordinate_length = None
        offsets = network(image)
    assert (offsets.dtype, embeddings.dtype) == (torch.bfloat16, torch.float32)
    added = embeddings[0, :2] - offsets[0, :2].float()
    torch.testing.assert_close(added, coordinate_grid((16, 400), 6.0), atol=1e-5, rtol=0)


def test_whole_images_at_another_width_have_the_coordinates_of_their_grid():
    network = build_instance(replace(SEMI, input_width=64)).eval()
    nn.init.zeros_(network.embed.weight), nn.init.zeros_(network.embed.bias)
    with torch.no_grad():
        embeddings = embed_images(network, torch.randn(1, 3, 60, 128))
    assert torch.equal(embeddings[0, :2], coordinate_grid((15, 32), 6.0))


def test_a_momentum_network_has_them_once():
    student = build_instance(SEMI)
    teacher = make_teacher(student)
    update_teacher(teacher, student, decay=0.5)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher(image), student.eval()(image))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"coordinate_length is 0\.0 and embedding_dim 8"):
        EmbeddingUNet(Encoder("test_efficientnet", output_stride=32), coordinate_length=0.0)
    with pytest.raises(ValueError, match="coordinate_length: expected pixels"):
        replace(PLAIN, coordinates="embedding")
    with pytest.raises(ValueError, match=r"found 6\.0 with coordinates 'input'"):
        replace(SEMI, coordinates="input")
    with pytest.raises(ValueError, match="embedding_dim: expected 2 or more"):
        replace(SEMI, embedding_dim=1)
    with pytest.raises(ValueError, match="coordinates has shape"):
        embedding_loss(
            torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64),
            weights=EmbeddingLossWeights(), coordinates=coordinate_grid((4, 5), 6.0),
        )  # fmt: skip


# ---- spellings and keys


def network_of(coordinates, **values):
    section = load_yaml(project_root() / "notebooks" / "profiles" / "base.yaml")["nuclei"]
    own = {"encoder": {"name": "test_efficientnet", "weights": None}, "decoder_channels": [8, 8, 8, 8]}
    section = section["instance_baseline"]["network"] | own
    return from_mapping(InstanceNetwork, section | {"coordinates": coordinates} | values, where="here")


def test_old_spellings_are_read_and_every_value_has_one_key():
    for old, new in ((False, "none"), (True, "input")):
        assert canonical_json(network_of(old)) == canonical_json(network_of(new))
        assert f'"coordinates":{str(old).lower()}' in canonical_json(network_of(new))
        assert network_of(old).sees_coordinates == network_of(new).sees_coordinates == old
        assert "coordinate_length" not in canonical_json(network_of(old))
    semi = network_of("embedding", coordinate_length=6.0)
    assert '"coordinate_length":6.0' in canonical_json(semi) and not semi.sees_coordinates
    assert '"coordinates":"embedding"' in canonical_json(semi)
    with pytest.raises(ProfileError, match="coordinates: expected"):
        network_of("output")


# ---- losses


def scene(n_instances=4, size=(12, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(2, 4, *size, generator=generator)
    labels = torch.randint(n_instances + 1, (2, *size), generator=generator)
    return offsets, labels, torch.rand(labels.shape, generator=generator) < 0.1


def test_the_regulariser_sees_offsets_and_not_where_objects_are():
    offsets, labels, ignore = scene()
    grid = coordinate_grid(labels.shape[-2:], 1.5)
    weights = replace(ONLY, regulariser=1.0)
    options = {"weights": weights, "ignore": ignore}
    plain = embedding_loss(offsets, labels, **options)["regulariser"]
    embeddings = add_coordinates(offsets, 1.5).requires_grad_()
    seen = embedding_loss(embeddings, labels, coordinates=grid, **options)["regulariser"]
    torch.testing.assert_close(seen, plain)
    blind = embedding_loss(embeddings, labels, **options)["regulariser"]
    assert blind > seen + 0.1  # it would pull objects to the middle
    offsets.requires_grad_()
    expected = torch.autograd.grad(embedding_loss(offsets, labels, **options)["regulariser"], offsets)
    torch.testing.assert_close(torch.autograd.grad(seen, embeddings), expected)


def test_where_a_crop_was_cut_changes_no_term():
    """The same pixels from another place of an image: all embeddings and coordinates move."""
    offsets, labels, ignore = scene()
    grid = coordinate_grid(labels.shape[-2:], 6.0)
    moved = grid + torch.tensor([3.0, -7.0])[:, None, None]
    teacher = offsets + 0.1
    found = []
    for coordinates in (grid, moved):
        torch.manual_seed(0)
        added = torch.cat([coordinates, torch.zeros_like(grid)])
        found.append(
            embedding_loss(
                offsets + added, labels, weights=EmbeddingLossWeights(), ignore=ignore,
                teacher_embeddings=teacher + added, coordinates=coordinates,
            )
        )  # fmt: skip
    assert len(found[0]) == 6
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


# ---- rotations


class Grid(nn.Module):
    """Says nothing but coordinates."""

    def forward(self, image):
        return add_coordinates(image.new_zeros(len(image), 4, *image.shape[-2:]), 6.0)


class TellsCentres(nn.Module):
    """A perfect network: every pixel of a red, green or blue disc says where the middle of the disc is."""

    def forward(self, image):
        shares = (denormalise(image) - 0.5).relu()
        shares = shares / shares.flatten(2).sum(2)[..., None, None].clamp(min=1e-6)
        grid = coordinate_grid(image.shape[-2:], 6.0)
        centres = torch.einsum("bchw,dhw->bcd", shares, grid)
        own = (denormalise(image) > 0.75).float()
        offsets = torch.einsum("bchw,bcd->bdhw", own, centres) - own.sum(1, keepdim=True) * grid
        return add_coordinates(torch.cat([offsets, own.sum(1, keepdim=True), own[:, :1] * 0], 1), 6.0)


def discs(size=(72, 96)):
    y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    image = torch.zeros(1, 3, *size)
    for channel, (at_y, at_x, radius) in enumerate([(-12, -14, 9), (14, 8, 12), (-14, 12, 8)]):
        image[0, channel][(y - at_y) ** 2 + (x - at_x) ** 2 < radius**2] = 1.0
    return image


def consistency(student, teacher, valid):
    """Over all pixels on which both views look."""
    torch.manual_seed(0)
    labels = torch.zeros(valid.shape, dtype=torch.int64)
    weights = replace(ONLY, consistency=1.0)
    terms = embedding_loss(student, labels, weights=weights, teacher_embeddings=teacher, valid=valid)
    return terms["consistency"].item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(64, 64), (41, 80)])
def test_coordinates_alone_agree_with_themselves_in_any_rotation(seed, size):
    torch.manual_seed(seed)
    crops = torch.rand(3, 3, *size)
    teacher, valid = rotated_view(Grid(), crops, 360.0)
    assert 0.2 < valid.float().mean() < 1
    assert consistency(Grid()(crops), teacher, valid) < 1e-4
    # and it is the rotation about the middle that they went through: pixels that stayed would not agree
    turned = warping.unrotate(teacher, torch.full((3,), 45.0))
    assert consistency(Grid()(crops), turned, valid) > 1e-2


@pytest.mark.parametrize("seed", range(4))
def test_centres_agree_in_any_rotation_and_offsets_alone_would_not(seed):
    """A teacher that is right about the turned crop is right after the way back as well."""
    torch.manual_seed(seed)
    crops = discs()
    degrees = 60.0 + 240.0 * torch.rand(1)
    student = TellsCentres()(embedding_input(crops))
    turned = TellsCentres()(warping.rotate(embedding_input(crops), degrees))
    valid = warping.rotation_validity(crops.shape[-2:], degrees)
    right = consistency(student, warping.unrotate(turned, degrees), valid)
    grid = coordinate_grid(crops.shape[-2:], 6.0)
    offsets = turned - torch.cat([grid, torch.zeros_like(grid)])
    torn = consistency(student, add_coordinates(warping.unrotate(offsets, degrees), 6.0), valid)
    assert right < 0.1
    assert torn > right + 0.1


def embedding_input(crops):
    return (crops - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]


# ---- clusterings


@pytest.mark.parametrize("algorithm", ["mean_shift", "mean_shift_plus", "mean_shift_peel", "mean_shift_grid"])
@pytest.mark.parametrize("length", [2.0, 6.0])
def test_equal_objects_far_apart_are_found_one_by_one(algorithm, length):
    """A convolution says the same of equal discs; with coordinates they lie up to 200 units apart."""
    generator = torch.Generator().manual_seed(0)
    height, width, pitch = 128, 384, 32
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    to_centre = torch.stack([pitch / 2 - x % pitch, pitch / 2 - y % pitch])
    mask = to_centre.square().sum(0) < 12**2
    offsets = torch.cat([to_centre / length, torch.zeros(2, height, width)])
    offsets += 0.1 * torch.randn(offsets.shape, generator=generator)
    options = {"algorithm": algorithm, "bandwidth": 0.75, "delta_dist": 1.5, "min_size": 8}
    middles = cluster(offsets, mask, **options)[pitch // 2 :: pitch, pitch // 2 :: pitch]
    assert len(middles.unique()) <= 3  # of 48; noise decides between neighbouring modes
    labels = cluster(add_coordinates(offsets[None], length)[0], mask, **options)
    assert labels.max() == (height // pitch) * (width // pitch)
    disc = (y // pitch) * (width // pitch) + x // pitch
    assert all(len(labels[mask & (disc == k)].unique()) == 1 for k in range(int(disc.max()) + 1))
