"""A map of a network comes back on the pixels that it was computed from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from copying import copied_by, ramp

from panolib.data import photometry
from panolib.inference import predict
from panolib.models.bisenet import BiSeNet
from panolib.models.deeplab import DeepLab
from panolib.models.encoder import Encoder
from panolib.models.geometry import Placement, enlarge, placement_of, upsample_to
from panolib.models.unet import EmbeddingUNet
from panolib.training import semantic
from panolib.training.instance_targets import to_embedding_grid
from panolib.training.setup import build_semantic
from panolib.training.specs import EncoderSpec, SemanticNetwork

LATER = "later: the recorded networks take cells for the middle of their pixels"
SIZES = [(64, 96), (65, 97), (75, 110)]


def centre_taps(stride: int, *, pool: bool = False) -> nn.Sequential:
    """Strided layers with symmetric padding that copy the pixel under their centre."""
    layers = []
    while stride > 1:
        kernel = 7 if not layers else 3
        layer = nn.Conv2d(1, 1, kernel, stride=2, padding=kernel // 2, bias=False)
        nn.init.zeros_(layer.weight)
        layer.weight.data[0, 0, kernel // 2, kernel // 2] = 1
        layers.append(layer)
        stride //= 2
    return nn.Sequential(*layers)


def copied(image: torch.Tensor, stride: int) -> torch.Tensor:
    return copied_by(centre_taps(stride), image)


def largest_offset(found: torch.Tensor, stride: int) -> float:
    """Pixels by which positions are off, where there are cells on both sides."""
    size = found.shape[-2:]
    rows, columns = ((n - 1) // stride * stride + 1 for n in size)
    return (found - ramp(size))[..., :rows, :columns].abs().max().item()


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", SIZES)
def test_positions_come_back_exactly(size, stride):
    maps = copied(ramp(size), stride)
    found = upsample_to(maps, size, Placement("receptive_field", stride))
    assert found.shape[-2:] == size
    assert largest_offset(found, stride) < 1e-3


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "alignment",
    ["receptive_field", pytest.param("cell_centre", marks=pytest.mark.xfail(strict=True, reason=LATER))],
)
def test_a_thin_line_comes_back_where_it_was(alignment, size, stride):
    for column in range(stride, size[1] - stride, stride):  # lines that a cell can see
        image = torch.zeros(1, 1, *size)
        image[..., column] = 1
        found = upsample_to(copied(image, stride), size, Placement(alignment, stride))[0, 0, size[0] // 2]
        centre = (found * torch.arange(size[1])).sum() / found.sum()
        assert abs(centre - column) <= 0.5


@pytest.mark.xfail(strict=True, reason=LATER)
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_the_default_of_a_network_puts_cells_on_their_receptive_field(stride):
    network = SemanticNetwork("v2", EncoderSpec("test_efficientnet", None), stride, (1,))
    placement = placement_of(build_semantic(network, 2))
    assert largest_offset(upsample_to(copied(ramp((64, 96)), stride), (64, 96), placement), stride) <= 0.5


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [*SIZES, (3, 5), (16, 1), (17, 33)])
def test_the_fast_way_is_linear_interpolation(size, stride):
    maps = torch.randn(2, 3, *(-(-n // stride) for n in size), dtype=torch.float64)
    found = enlarge(maps, size, "receptive_field", stride)
    for dim, n in zip((-2, -1), size):
        position = torch.arange(n, dtype=torch.float64) / stride
        low = position.long().clamp(max=maps.shape[dim] - 1)
        high = (low + 1).clamp(max=maps.shape[dim] - 1)
        share = (position - low).reshape([-1, 1] if dim == -2 else [-1])
        maps = (1 - share) * maps.index_select(dim, low) + share * maps.index_select(dim, high)
    torch.testing.assert_close(found, maps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alignment", ["receptive_field", "corners"])
@pytest.mark.parametrize("reduced_by", [2, 4])
def test_a_smaller_canvas_holds_the_centres_of_its_own_pixels(alignment, reduced_by, size):
    """Maps of self-training are fused on a canvas of fewer pixels than the image has."""
    stride, small = 8, tuple(n // reduced_by for n in size)
    placement = Placement(alignment, stride)
    if alignment == "corners":
        rows, columns = (torch.linspace(0, n - 1, -(-n // stride)) for n in size)
        maps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    else:
        maps = copied(ramp(size), stride)
    found = upsample_to(maps, small, placement, image_size=size)
    for axis, (n, n_image) in enumerate(zip(small, size)):
        expected = (torch.arange(n) + 0.5) * n_image / n - 0.5
        expected = expected.clamp(max=maps[0, axis].max())
        torch.testing.assert_close(
            found[0, axis].select(1 - axis, 0), expected, rtol=0, atol=1e-3
        )


def test_corners_and_cell_centres_are_those_of_torch():
    maps = torch.randn(1, 2, 5, 7)
    for alignment, aligned in (("cell_centre", False), ("corners", True)):
        expected = nn.functional.interpolate(maps, (33, 52), mode="bilinear", align_corners=aligned)
        assert torch.equal(upsample_to(maps, (33, 52), Placement(alignment, 8)), expected)


def test_gradients_reach_every_cell():
    maps = torch.randn(1, 1, 3, 4, requires_grad=True)
    for size, image_size in (((24, 32), None), ((20, 25), None), ((12, 16), (24, 32))):
        (gradient,) = torch.autograd.grad(
            upsample_to(maps, size, Placement("receptive_field", 8), image_size=image_size).sum(), maps
        )
        assert (gradient > 0).all() and gradient.sum().item() == pytest.approx(size[0] * size[1], rel=1e-4)


def test_a_placement_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"alignment is 'centre'.*receptive_field"):
        Placement("centre")
    with pytest.raises(ValueError, match="stride is 0"):
        Placement("receptive_field", 0)


class Copying(nn.Module):
    """Logits +-1 for bright and dark, from every eighth pixel; says where they sit."""

    placement = Placement("receptive_field", 8)

    def __init__(self):
        super().__init__()
        self.taps = centre_taps(8)

    def forward(self, image):
        value = self.taps(image[:, :1]).sign()
        return torch.cat([-value, value], 1)


def half_bright(size=(61, 100), column=48):
    image = torch.full((1, 3, *size), -1.0)
    image[..., column:] = 1.0
    return image


def border(labels) -> int:
    """First column of class 1."""
    return int((labels[labels.shape[0] // 2] == 1).nonzero()[0])


def test_evaluation_inference_and_training_ask_the_network_where_its_cells_sit():
    """The border lies between the cells at columns 40 and 48: interpolated half-way, at 44 or 45."""
    model, image = Copying(), half_bright()
    labels = predict.predict_semantic(model, image, image.shape[-2:])
    assert border(labels[0]) in (44, 45)

    pixels = (255 * photometry.denormalise(image).clamp(0, 1)).round().byte()[0].movedim(0, -1).numpy()
    sample = semantic.Sample(pixels, None, None, None, "half")
    (prediction,) = predict.predict(model, None, [sample])
    assert border(prediction.semantic) in (44, 45)

    truth = torch.zeros(image.shape[0], *image.shape[-2:], dtype=torch.int64)
    losses = {}
    for column in (40, 44, 48):  # with cell centres the border would lie at 48
        truth[..., column:], truth[..., :column] = 1, 0
        losses[column] = semantic.supervised_loss((10 * model(image),), truth, placement_of(model)).item()
    assert min(losses, key=losses.get) == 44


def test_the_profile_chooses_geometry_and_alignment():
    encoder = EncoderSpec("resnet18", None)
    network = SemanticNetwork("v2", encoder, 8, (1,), alignment="corners", geometry="sac")
    model = build_semantic(network, 2)
    assert any(getattr(layer, "ceil_mode", False) for layer in model.modules())
    assert placement_of(model) == Placement("corners", 8)


def test_a_wrapped_network_keeps_its_placement():
    wrapped = nn.Module()
    wrapped.module = Copying()
    assert placement_of(wrapped) == Copying.placement
    assert placement_of(nn.Identity()) == Placement("cell_centre")


# --- maps inside the networks -------------------------------------------------------------------------------


def copying_encoder(output_stride: int = 32) -> Encoder:
    """An encoder whose maps hold, in every channel, the column of the pixel that their cells sit on."""
    encoder = Encoder("test_efficientnet", output_stride=output_stride).eval()

    def forward(image):
        maps = []
        for stride, channels in zip(encoder.strides, encoder.channels):
            shape = [-(-n // stride) for n in image.shape[-2:]]
            columns = stride * torch.arange(shape[1], dtype=torch.float32)
            maps.append(columns.expand(1, channels, *shape).contiguous())
        return maps

    encoder.forward = forward
    return encoder


def seen_by(block: nn.Module, inputs: list):
    block.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))


@pytest.mark.parametrize(
    "alignment",
    ["receptive_field", pytest.param("cell_centre", marks=pytest.mark.xfail(strict=True, reason=LATER))],
)
def test_maps_meet_their_skips_inside_the_unet(alignment):
    """Both parts of a concatenation say the same column, but at the right edge, where nothing lies beyond."""
    options = {"decoder_channels": (4, 4, 4, 4), "output_stride": 2, "alignment": alignment}
    network = EmbeddingUNet(copying_encoder(), **options)
    inputs: list = []
    for i, block in enumerate(network.blocks):
        seen_by(block, inputs)
        channels = network.encoder.channels[3 - i]
        network.blocks[i].forward = lambda x, n=channels: x[:, -n:]  # hand the skip on: its cells are known
    with torch.no_grad():
        network.embed = nn.Identity()
        network(torch.zeros(1, 3, 65, 161))
    assert len(inputs) == 4
    for joined in inputs:
        inside = joined[..., : joined.shape[-1] - 1 - joined.shape[-1] % 2]
        assert (inside[:, 0] - inside[:, -1]).abs().max() <= 0.5


@pytest.mark.xfail(strict=True, reason=LATER)
def test_labels_of_embeddings_are_those_of_the_pixel_under_the_cell():
    """At stride 2 the cell sits on pixel 2 j, its label comes from 2 j + 1 (`EmbeddingUNet`)."""
    columns = torch.arange(16).expand(1, 8, 16)
    found = to_embedding_grid(columns, torch.zeros(1, 2, 4, 8))
    assert (found[0, 0] - 2 * torch.arange(8)).abs().max() <= 0.5


@pytest.mark.parametrize("alignment", ["receptive_field", "cell_centre"])
def test_maps_meet_inside_v3_plus_and_bisenet(alignment):
    """Off by (16 - 4) / 2 and (16 - 8) / 2 pixels with cell centres; in place on receptive fields."""
    image, inputs = torch.zeros(1, 3, 64, 160), []
    options = {"version": "v3+", "head_channels": 16, "alignment": alignment}
    network = DeepLab(copying_encoder(output_stride=16), 2, **options)
    network.aspp.forward = lambda features: features[:, :16]
    network.reduce.forward = lambda features: features[:, :3]
    seen_by(network.decoder, inputs)
    with torch.no_grad():
        network.eval()(image)
    (joined,) = inputs
    off = (joined[:, 0] - joined[:, -1])[..., 4:-8]
    torch.testing.assert_close(off, torch.full_like(off, 0.0 if alignment == "receptive_field" else -6.0))

    bisenet, inputs = BiSeNet(copying_encoder(), 2, alignment=alignment).eval(), []
    assert bisenet.placement == Placement(alignment, 8)
    bisenet.attention_fine.forward = lambda features: features
    seen_by(bisenet.fusion, inputs)
    with torch.no_grad():
        bisenet(image)
    fine = inputs[0][:, 4 * bisenet.encoder.channels[0]]  # after the spatial path
    off = (fine - 8 * torch.arange(fine.shape[-1]))[..., 2:-4]
    torch.testing.assert_close(off, torch.full_like(off, 0.0 if alignment == "receptive_field" else -4.0))
