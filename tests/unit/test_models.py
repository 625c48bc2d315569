from __future__ import annotations

from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import nn

from panolib.models.coordinates import append_coordinates
from panolib.models.deeplab import DeepLab
from panolib.models.encoder import Encoder
from panolib.models.unet import EmbeddingUNet
from panolib.models.weights import WeightsError, weights_fingerprint


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def thin(**options) -> Encoder:
    """timm's smallest network with five maps."""
    return Encoder("test_efficientnet", **{"output_stride": 32} | options)


# --- encoder -----------------------------------------------------------------------------------------------


def test_encoder_rejects_what_does_not_exist():
    with pytest.raises(ValueError, match="has no output_stride 2 "):
        thin(output_stride=2)
    with pytest.raises(ValueError, match=r"geometry is 'caffe'.*sac"):
        thin(geometry="caffe")
    with pytest.raises(ValueError, match=r"'sac', which resnet18, .* but not 'test_efficientnet'"):
        thin(geometry="sac")
    with pytest.raises(WeightsError, match=r"resnet18 is 'IMAGENET1K_V7', .*IMAGENET1K_V1, a file"):
        Encoder("resnet18", weights="IMAGENET1K_V7")
    with pytest.raises(WeightsError, match="expected 'imagenet', 'package', a file or null"):
        thin(weights="IMAGENET1K_V1")


def test_named_weights_come_from_torchvision(monkeypatch):
    state = torchvision.models.resnet18(weights=None).state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *args, **kwargs: state)
    encoder = Encoder("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(encoder.stages[4][0][1].conv2.weight, state["layer4.1.conv2.weight"])


def test_weights_that_cannot_be_downloaded_are_one_error(monkeypatch, tmp_path):
    """It names the weights, what was tried and how to go on."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights

    def fails(self, *args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", fails)
    with pytest.raises(WeightsError) as caught:
        Encoder("resnet18", weights="IMAGENET1K_V1")
    url = weights.IMAGENET1K_V1.url
    for part in ("'IMAGENET1K_V1'", "resnet18", "no route to host", url, str(tmp_path), "its path as"):
        assert part in str(caught.value)

    cached = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=f"{cached.name} is damaged: delete it"):
        Encoder("resnet18", weights="IMAGENET1K_V1")


def test_weights_come_from_a_file_at_home_and_from_a_variable(monkeypatch, tmp_path):
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save(state, tmp_path / "tiny.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/tiny.pth", "$WEIGHTS_FOLDER/tiny.pth", "tiny.pth", tmp_path / "tiny.pth"):
        encoder = thin(weights=path)
        assert torch.equal(encoder.stages[0][0].weight, state["conv_stem.weight"])


def test_a_wrong_file_of_weights_is_one_error(tmp_path):
    path = tmp_path / "resnet.pth"
    with pytest.raises(WeightsError, match=rf"no such file \(tried {path}\), expected the state dict"):
        Encoder("resnet18", weights=path)
    for content in (b"", b"a picture", b"PK\x03\x04 half an archive"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"resnet.pth cannot be read .*, expected a state dict"):
            Encoder("resnet18", weights=path)
    torch.save({"epoch": 3, "model": {}}, path)
    with pytest.raises(WeightsError, match=r"resnet.pth hold the keys \['epoch', 'model'\]"):
        Encoder("resnet18", weights=path)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state | {"layer1.2.conv1.weight": state["layer1.1.conv1.weight"]}, path)  # deeper
    with pytest.raises(WeightsError, match=r"resnet.pth' do not fit resnet18: it has no layer1.2.conv1"):
        Encoder("resnet18", weights=path)
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(16, 16, 3, 3)}, path)  # thinner
    with pytest.raises(WeightsError, match=r"fit resnet18: layer1.0.conv1.weight has shape \(16, 16, 3, 3\)"):
        Encoder("resnet18", weights=path)
    del state["layer4.1.bn2.running_var"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"layer4\.1\.bn2\.running_var is missing"):
        Encoder("resnet18", weights=path)


def test_the_key_follows_a_file_of_weights(tmp_path):
    path = tmp_path / "resnet.pth"
    assert weights_fingerprint(None) == weights_fingerprint("IMAGENET1K_V1") == ()
    with pytest.raises(WeightsError, match="no such file"):
        weights_fingerprint(str(path))
    path.write_bytes(b"one")
    first = weights_fingerprint(str(path))
    path.write_bytes(b"another")
    assert first != weights_fingerprint(str(path))
    link = tmp_path / "link.pth"
    link.symlink_to(path)
    assert weights_fingerprint(str(link)) == weights_fingerprint(str(path))


def test_sac_geometry_strides_early_pools_in_ceil_mode_and_dilates_the_first_block():
    """Strides, dilations and shapes of the reference code."""
    with torch.device("meta"):
        ours, sac = (
            Encoder("resnet50", output_stride=8, geometry=geometry) for geometry in ("torchvision", "sac")
        )
        image = torch.zeros(1, 3, 512, 1024)
        assert [tuple(features.shape[-2:]) for features in sac(image)[1:3]] == [(129, 257), (65, 129)]
        assert [tuple(features.shape[-2:]) for features in ours(image)[1:3]] == [(128, 256), (64, 128)]
    assert sac.strides == ours.strides == [2, 4, 8, 8, 8]
    assert sac.padding == ours.padding == "symmetric"
    for stage, stride, dilation in zip(sac.stages[1:], (1, 2, 1, 1), (1, 1, 2, 4)):
        blocks = stage[-1]
        assert [b.conv1.stride for b in blocks] == [(stride,) * 2, *[(1, 1)] * (len(blocks) - 1)]
        assert blocks[0].downsample[0].stride == (stride, stride)
        assert {b.conv2.stride for b in blocks} == {(1, 1)}
        assert {b.conv2.dilation for b in blocks} == {b.conv2.padding for b in blocks} == {(dilation,) * 2}
    assert [stage[-1][0].conv2.dilation[0] for stage in ours.stages[3:]] == [1, 2]
    assert ours.stages[2][-1][0].conv1.stride == (1, 1) and ours.stages[2][-1][0].conv2.stride == (2, 2)
    shapes = [{name: value.shape for name, value in e.state_dict().items()} for e in (ours, sac)]
    assert shapes[0] == shapes[1]  # neither a name nor a shape differs


@pytest.mark.parametrize("geometry", ["torchvision", "sac"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_cells_sit_on_multiples_of_the_stride(name, geometry):
    """Image pixels that a cell depends on lie symmetrically around pixel i * stride."""
    encoder = Encoder(name, output_stride=8, geometry=geometry).double().eval()
    layers = dict(encoder.stages[1].named_children())
    (pool,) = (key for key, layer in layers.items() if isinstance(layer, nn.MaxPool2d))
    setattr(encoder.stages[1], pool, nn.AvgPool2d(3, 2, 1, ceil_mode=layers[pool].ceil_mode))
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    image = torch.ones(1, 3, 8, 512, dtype=torch.float64, requires_grad=True)
    for features, stride in zip(encoder(image), encoder.strides):
        cell = 256 // stride
        (gradient,) = torch.autograd.grad(features[..., cell].sum(), image, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 2)).nonzero()
        assert (seen.min() + seen.max()).item() / 2 == 256


# --- DeepLab -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "output_stride", "stride"), [("v2", 8, 8), ("v3", 16, 16), ("v3", 8, 8), ("v3+", 16, 4)]
)
def test_deeplab_logits_have_the_stride_of_the_head(version, output_stride, stride):
    network = DeepLab(thin(output_stride=output_stride), 5, version=version, head_channels=16)
    assert network.output_stride == stride
    logits = network(torch.randn(2, 3, 65, 96))
    assert logits.shape == (2, 5, -(-65 // stride), 96 // stride)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_v2_sums_its_branches():
    network = DeepLab(thin(output_stride=8), 3, rates=(1, 2)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = network.encoder(image)[-1]
        expected = network.branches[0](features) + network.branches[1](features)
        assert torch.equal(network(image), expected)
    assert [b.dilation for b in network.branches] == [(1, 1), (2, 2)]


def test_default_rates_keep_the_field_of_view():
    assert DeepLab(thin(output_stride=8), 3).rates == (6, 12, 18, 24)
    assert DeepLab(thin(output_stride=16), 3, version="v3").rates == (6, 12, 18)
    assert DeepLab(thin(output_stride=8), 3, version="v3+").rates == (12, 24, 36)
    assert DeepLab(thin(output_stride=8), 3, version="v3+", rates=[1, 2]).rates == (1, 2)


def test_classifier_starts_near_uniform():
    weight = torch.cat([b.weight.flatten() for b in DeepLab(thin(), 19).branches])
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(b.bias.any() for b in DeepLab(thin(), 19).branches)


def test_one_image_trains_v3_and_leaves_the_pooling_statistics():
    network = DeepLab(thin(output_stride=16), 4, version="v3", head_channels=16).train()
    pooling = network.aspp.branches[-1]
    network(torch.randn(1, 3, 64, 64)).sum().backward()
    assert torch.equal(pooling.norm.running_mean, torch.zeros(16))
    assert pooling.conv.weight.grad.isfinite().all()
    network(torch.randn(2, 3, 64, 64))
    assert pooling.norm.running_mean.any()


def test_deeplab_rejects_unknown_options():
    with pytest.raises(ValueError, match="version is 'v4'"):
        DeepLab(thin(), 3, version="v4")
    with pytest.raises(ValueError, match="rates"):
        DeepLab(thin(), 3, rates=(0, 6))
    with pytest.raises(ValueError, match="rates"):
        DeepLab(thin(), 3, rates=())


# --- U-Net -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (50, 31), (33, 64)])
def test_unet_fits_any_size(size):
    for stride in (1, 2):
        network = EmbeddingUNet(thin(), 6, decoder_channels=(32, 16, 16, 8, 8), output_stride=stride)
        embeddings = network(torch.randn(2, 3, *size))
        assert embeddings.shape == (2, 6, -(-size[0] // stride), -(-size[1] // stride))
        embeddings.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_unet_stops_one_block_earlier_at_stride_2():
    assert len(EmbeddingUNet(thin()).blocks) == 5
    assert len(EmbeddingUNet(thin(), output_stride=2, decoder_channels=(8, 8, 8, 8)).blocks) == 4


def test_unet_output_has_no_activation():
    embeddings = EmbeddingUNet(thin(), 8)(torch.randn(2, 3, 64, 64))
    assert embeddings.min() < 0 < embeddings.max()
    assert not torch.allclose(embeddings.sum(dim=1), torch.ones(2, 64, 64), atol=1e-3)


def test_unet_uses_every_skip():
    network = EmbeddingUNet(thin()).eval()
    maps = [m.detach().requires_grad_() for m in network.encoder(torch.randn(1, 3, 64, 64))]
    network.encoder.forward = lambda image: maps
    network(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


def test_coordinates_are_x_then_y_in_minus_one_to_one():
    with_grid = append_coordinates(torch.zeros(2, 3, 3, 5))
    assert with_grid.shape == (2, 5, 3, 5)
    assert with_grid[1, 3, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert with_grid[1, 4, :, 2].tolist() == [-1, 0, 1]
    network = EmbeddingUNet(thin(in_channels=5), coordinates=True)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 8, 32, 32)


def test_unet_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="output_stride is 4"):
        EmbeddingUNet(thin(), output_stride=4)
    with pytest.raises(ValueError, match="decoder_channels"):
        EmbeddingUNet(thin(), decoder_channels=(8, 8, 8, 8))
    with pytest.raises(ValueError, match="in_channels=3"):
        EmbeddingUNet(thin(), coordinates=True)(torch.zeros(2, 3, 32, 32))


def test_every_norm_is_batch_norm():
    networks = [DeepLab(thin(), 3, version="v3+", head_channels=8), EmbeddingUNet(thin())]
    for network in networks:
        norms = [m for m in network.modules() if "Norm" in type(m).__name__]
        assert norms and all(isinstance(m, nn.BatchNorm2d) for m in norms)
