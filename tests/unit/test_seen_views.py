"""Several views of an image at test time: `inference.views`, and the runs that score them."""

import copy

import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from panolib.__main__ import main
from panolib.inference.views import (
    REFLECTIONS,
    SETS,
    EmbeddedInViews,
    SeenInViews,
    Views,
    embedded_in,
    resized,
    seen_in,
)
from panolib.load import load
from panolib.models.encoder import Encoder
from panolib.models.geometry import Placement, placement_of, upsample_to
from panolib.models.unet import EmbeddingUNet
from panolib.study.apply import predict, weights_file
from panolib.study.packaged import read_package
from panolib.study.parents import CLEANUP
from panolib.study.views import CHOICE, EXPERIMENT


class Probe(nn.Module):
    """Two classes of a 3 x 3 kernel that is not symmetric, on every second pixel."""

    placement = Placement("receptive_field", 2)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.shapes = nn.Conv2d(3, 2, 3, stride=2, padding=1), []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        return self.layer(image)


def probabilities(network, image):
    logits = network(image)
    return upsample_to(logits, image.shape[-2:], placement_of(network)).softmax(1)


@pytest.fixture
def image():
    return torch.randn(2, 3, 11, 15, generator=torch.Generator().manual_seed(0))


def test_mirrored_views_are_the_mean_of_both_by_hand(image):
    network = Probe()
    expected = (probabilities(network, image) + probabilities(network, image.flip(-1)).flip(-1)) / 2
    found = SeenInViews(network, Views(mirrored="left_right"))
    assert torch.allclose(probabilities(found, image), expected, atol=1e-6)
    assert not torch.allclose(expected, probabilities(network, image), atol=1e-3)  # else mirrors say nothing


def test_all_reflections_turn_with_the_image(image):
    found = SeenInViews(Probe(), Views(mirrored="all"))
    straight = probabilities(found, image)
    for exchanged, turned in REFLECTIONS["all"]:
        view = image.flip(turned).mT if exchanged else image.flip(turned)
        other = probabilities(found, view)
        assert torch.allclose((other.mT if exchanged else other).flip(turned), straight, atol=1e-6)


def test_scales_are_seen_at_their_sizes_and_answer_at_that_of_the_image(image):
    network = Probe()
    found = SeenInViews(network, Views(scales=(0.5, 2.0), mirrored="left_right"))
    assert found(image).shape == (2, 2, 11, 15)
    assert network.shapes == [(2, 3, 6, 8), (2, 3, 6, 8), (2, 3, 22, 30), (2, 3, 22, 30)]
    assert resized(image, 0.01).shape[-2:] == (1, 1)


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    encoder = Encoder("test_efficientnet", output_stride=32)
    widths = {"embedding_dim": 4, "decoder_channels": (8, 8, 8, 8), "coordinate_length": 4.0}
    return EmbeddingUNet(encoder, output_stride=2, alignment="receptive_field", **widths).eval()


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (33, 31)])
def test_embeddings_of_the_image_alone_are_those_of_the_network(embedder, size):
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert torch.equal(EmbeddedInViews(embedder, Views())(image), embedder(image))


def test_coordinates_of_reflections_stay_where_the_pixels_are(embedder):
    """With offsets of 0 embeddings are the coordinates, in every view and so in their mean."""
    image = torch.randn(1, 3, 32, 48)
    plain = copy.deepcopy(embedder)
    with torch.inference_mode():
        plain.embed.weight.zero_()
        found, expected = EmbeddedInViews(plain, Views(mirrored="all"))(image)[0], plain(image)[0]
    inside = (slice(None), slice(1, -1), slice(1, -1))  # beyond the outermost cells the nearest is repeated
    shift = (found - expected)[inside]
    assert shift.flatten(1).std(1).max() < 1e-5 < expected[:2].std()


def test_objects_of_a_reflected_image_lie_where_its_pixels_do(embedder):
    """Distances between embeddings, at pixels of both grids, are those of the image that is not reflected."""
    image, network = torch.randn(1, 3, 31, 47), EmbeddedInViews(embedder, Views(mirrored="all"))
    with torch.inference_mode():
        straight, turned = network(image)[0], network(image.flip(-1).mT.contiguous())[0].mT.flip(-1)
    straight, turned = (maps[:, 2:-2, 2:-2].flatten(1).T for maps in (straight, turned))
    assert torch.allclose(torch.cdist(straight, straight), torch.cdist(turned, turned), atol=1e-3)


def test_plain_embeddings_are_left_alone(embedder):
    plain = copy.deepcopy(embedder)
    plain.coordinate_length = None
    assert embedded_in(plain, Views(mirrored="all")) is plain
    assert embedded_in(embedder, Views((0.5, 1.0))) is embedder and embedded_in(embedder, None) is embedder
    with pytest.raises(ValueError, match=r"^expected a network that adds coordinates to its embeddings$"):
        EmbeddedInViews(plain, Views(mirrored="all"))


def test_one_pixel_and_certain_classes_stay_finite():
    network = Probe()
    with torch.no_grad():
        network.layer.bias.copy_(torch.tensor([1e4, -1e4]))
    logits = SeenInViews(network, Views(mirrored="all", scales=(0.5, 1.0)))(torch.zeros(1, 3, 1, 1))
    assert torch.isfinite(logits).all() and logits.softmax(1)[0, 0] == 1


def test_the_image_alone_is_the_network_itself():
    network = Probe()
    assert seen_in(network, None) is network and seen_in(network, Views()) is network
    sets = (Views(), Views(mirrored="left_right"), Views((0.5, 1.0), "all"))
    assert [views.number for views in sets] == [1, 2, 16]


@pytest.mark.parametrize(
    "wrong", [{"scales": ()}, {"scales": (0.0,)}, {"scales": (1.0, 1.0)}, {"mirrored": "up"}]
)
def test_wrong_views_are_refused(wrong):
    with pytest.raises(ValueError):
        Views(**wrong)


@pytest.fixture(scope="module")
def study():
    return load("cpu", train=False)


def test_views_of_a_target_ladder_are_of_the_networks_of_its_rungs(study):
    run = study.runs["camvid-semantic-teacher-views.scales-s1"]
    assert run.spec.scored == "teacher" and run.spec.views == Views((0.75, 1.0, 1.25), "left_right")
    assert dict(run.parents)["semantic"].name == "camvid-semantic-self_trained-s1"
    oracle = study.runs["camvid-semantic-oracle-views.one-s1"]
    assert oracle.spec.label_set == "camvid" and run.spec.label_set == "cityscapes"


def test_views_of_both_branches_find_instances_as_the_clean_up_says():
    runs = load("smoke", train=False).runs
    run, ladder = (runs[f"city-panoptic-self_trained-{name}-s0"] for name in ("views.left_right", CLEANUP))
    assert run.parents == ladder.parents and run.spec.views == SETS["left_right"]


def test_views_are_chosen_on_the_source_alone(study):
    chosen = [study.runs[tag.run] for tag in study.tags if tag.experiment == CHOICE]
    scored = [study.runs[tag.run] for tag in study.tags if tag.experiment == EXPERIMENT]
    assert {run.spec.validation for run in chosen} == {"mix/val"}
    assert {run.spec.validation for run in scored} == {"camvid/val"}
    assert {run.rung for run in chosen} == {"source_only"}


def test_a_ladder_without_views_keeps_its_keys(study):
    for name in ("camvid-semantic-teacher-s0", "nuclei-panoptic-self_trained-s0"):
        assert study.store.load(study.runs[name]) is not None


def test_packaged_networks_see_what_is_asked_for():
    networks = read_package(weights_file("nuclei"))
    assert networks.seeing(None) is networks
    twice = networks.seeing(SETS["all"]).seeing(SETS["left_right"])
    assert twice.semantic.network is networks.semantic and twice.recipe.views == SETS["left_right"]
    assert twice.seeing(SETS["one"]).semantic is networks.semantic
    image = np.ascontiguousarray(data.coins()[:240:4, :320:4])  # discs of 12 pixels
    found = {views: predict(image, networks, views=views) for views in (None, "one", "all")}
    assert np.array_equal(found[None].confidence, found["one"].confidence)
    turned = predict(image[::-1].T, networks, views="all").confidence
    assert np.allclose(turned, found["all"].confidence[::-1].T, atol=1e-5)
    assert not np.allclose(found["one"].confidence, found["all"].confidence, atol=1e-3)
    with pytest.raises(ValueError, match=r"^views are 'both', expected one of one, left_right, all, scales$"):
        predict(image, networks, views="both")


def test_the_command_names_the_sets_of_views(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "{" + ",".join(SETS) + "}" in capsys.readouterr().out
