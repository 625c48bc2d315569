"""BiSeNet, the discriminators, and the counts of their parameters and operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from panolib.models.bisenet import BiSeNet
from panolib.models.complexity import clean_operations, n_operations, n_parameters
from panolib.models.encoder import Encoder
from panolib.models.geometry import upsample_to
from panolib.related.realtime.discriminator import Discriminator
from panolib.report.published import published
from panolib.training import semantic
from panolib.training.setup import build_semantic
from panolib.training.specs import EncoderSpec, SemanticNetwork

SIZE = (1, 19, 512, 1024)  # of the published complexity tables


def thin(output_stride: int = 32) -> BiSeNet:
    torch.manual_seed(0)
    return BiSeNet(Encoder("test_efficientnet", output_stride=output_stride), 5)


@pytest.mark.parametrize(("encoder_stride", "stride"), [(32, 8), (16, 8), (8, 4)])
def test_bisenet_shapes(encoder_stride, stride):
    model = thin(encoder_stride)
    assert model.output_stride == stride
    image = torch.randn(2, 3, 64, 96)
    heads = model(image, every_head=True)
    assert len(heads) == model.n_heads == 3
    assert {tuple(logits.shape) for logits in heads} == {(2, 5, 64 // stride, 96 // stride)}
    assert model.spatial(image).shape[-2:] == heads[0].shape[-2:]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), model(image, every_head=True)[0])


def test_every_head_reaches_its_own_layers_and_a_single_image_trains():
    model = thin().train()
    heads = model(torch.randn(1, 3, 64, 64), every_head=True)
    for index, name in enumerate(("classifier", "auxiliary_fine", "auxiliary_coarse")):
        weight = getattr(model, name).weight
        (found,) = torch.autograd.grad(heads[index].sum(), weight, retain_graph=True)
        assert found.abs().sum() > 0
        others = [logits.sum() for i, logits in enumerate(heads) if i != index]
        assert torch.autograd.grad(sum(others), weight, retain_graph=True, allow_unused=True) == (None,)


def test_the_last_convolution_may_come_before_the_upsampling():
    """The order of the reference, bilinear x8 and then 1x1 convolution, gives the same logits."""
    model = thin().eval()
    nn.init.normal_(model.classifier.bias)
    fused = torch.randn(1, 5, 4, 6)
    theirs = model.classifier(F.interpolate(fused, scale_factor=8, mode="bilinear", align_corners=False))
    ours = F.interpolate(model.classifier(fused), scale_factor=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "fused"), [("resnet18", 1024), ("resnet101", 3328)])
def test_bisenet_parameters(name, fused):
    """Sum over the parts of the network; the fusion takes 1024 or 3328 channels."""
    with torch.device("meta"):
        model = BiSeNet(Encoder(name, output_stride=32), 19)
    assert model.fusion.mix[0].in_channels == fused
    fine, coarse = model.encoder.channels[3:]
    spatial = 9 * (3 * 64 + 64 * 128 + 128 * 256) + 2 * (64 + 128 + 256)
    attention = sum(c * c + c + 2 * c for c in (fine, coarse))
    fusion = 9 * fused * 19 + 2 * 19 + 2 * (19 * 19 + 19)
    heads = (19 * 19 + 19) + (fine * 19 + 19) + (coarse * 19 + 19)
    encoder = n_parameters(model.encoder)
    assert n_parameters(model) == encoder + spatial + attention + fusion + heads


def test_build_semantic_knows_bisenet():
    network = SemanticNetwork("bisenet", EncoderSpec("test_efficientnet", None), 32)
    assert isinstance(build_semantic(network, 7), BiSeNet)


class OneHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.conv(image)[:, :, ::2, ::2]


def test_supervised_loss_counts_every_head_once():
    torch.manual_seed(0)
    image, labels = torch.randn(2, 3, 32, 32), torch.randint(4, (2, 32, 32))
    single = OneHead()
    expected = semantic.cross_entropy(upsample_to(single(image), (32, 32)), labels)
    found = semantic.supervised_loss(semantic.head_logits(single, image), labels)
    assert torch.equal(found, expected)  # one head, as in DeepLab: bit for bit
    model = thin().eval()
    heads = model(image, every_head=True)
    expected = sum(semantic.cross_entropy(upsample_to(x, (32, 32)), labels) for x in heads)
    torch.testing.assert_close(semantic.supervised_loss(semantic.head_logits(model, image), labels), expected)


@pytest.mark.parametrize("kind", ["fcd", "light"])
def test_discriminator_shape_and_locality(kind):
    torch.manual_seed(0)
    model = Discriminator(4, kind=kind, width=4)
    first = torch.randn(2, 4, 32, 96, requires_grad=True)
    output = model(first)
    assert output.shape == (2, 1, 32, 96)
    (gradient,) = torch.autograd.grad(output[0].sum(), first)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
    assert not any(isinstance(layer, nn.LeakyReLU) for layer in list(model.layers)[-2:])


def test_discriminator_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'heavy'"):
        Discriminator(4, kind="heavy")
    with pytest.raises(RuntimeError, match="channels"):
        Discriminator(4, width=2)(torch.zeros(1, 3, 30, 32))
    assert Discriminator(4, width=2)(torch.zeros(1, 4, 30, 32)).shape == (1, 1, 30, 32)


@pytest.mark.parametrize(("kind", "parameters"), [("fcd", 2_781_121), ("light", 189_424)])
def test_published_parameters(kind, parameters):
    assert n_parameters(Discriminator(19, kind=kind)) == parameters


@pytest.mark.parametrize("kind", ["fcd", "light"])
@pytest.mark.parametrize(
    ("convention", "file", "light"),
    [
        ("paper", "multilayer_ssl_tab3_discriminator_complexity.csv", "FCD-Light"),
        ("report", "realtime_da_report_tab2_discriminator_complexity.csv", "DSC"),
    ],
)
def test_published_operations(kind, convention, file, light):
    rows = published(file)
    method = {"fcd": "FCD", "light": light}[kind]
    (value,) = rows.loc[(rows["method"] == method) & (rows["class_or_metric"] == "FLOPS"), "value"]
    found = n_operations(Discriminator(19, kind=kind), SIZE, convention=convention)
    assert round(found / 1e9, 3) == value


def test_counts_against_the_counter_of_torch_and_by_hand():
    model = Discriminator(19, kind="light")
    assert n_operations(model, SIZE) == clean_operations(model, SIZE)
    assert 2 * n_operations(model, SIZE, convention="multiply-adds") == clean_operations(model, SIZE)
    tiny = nn.Sequential(nn.Conv2d(2, 3, 1), nn.LeakyReLU(), nn.Upsample(scale_factor=2))
    shape = (1, 2, 4, 5)  # 60 values after the convolution, 240 after the upsampling
    counts = {
        name: n_operations(tiny, shape, convention=name) for name in ("multiply-adds", "report", "paper")
    }
    assert counts == {
        "multiply-adds": 120,
        "report": 2 * (120 + 11 * 240),
        "paper": 2 * (120 + 60 + 60 + 11 * 240),
    }
    with pytest.raises(ValueError, match="convention is 'mine'"):
        n_operations(tiny, shape, convention="mine")


def test_counting_leaves_the_network_alone():
    model = thin().train()
    n_operations(model, (1, 3, 32, 32))
    assert model.training and model.classifier.weight.device.type == "cpu"
    assert not any(layer._forward_hooks for layer in model.modules())
