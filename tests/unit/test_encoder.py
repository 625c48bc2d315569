"""timm's networks as encoders: their weights, where their cells sit, what does not learn, what is refused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from skimage import data
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from copying import copied_by, ramp

from panolib.config import ProfileError, canonical_json, from_mapping
from panolib.data.photometry import normalise
from panolib.models import weights as weights_module
from panolib.models.bisenet import BiSeNet
from panolib.models.complexity import clean_operations, n_operations
from panolib.models.deeplab import DeepLab
from panolib.models.encoder import ENCODER_STRIDES, KNOWN, Encoder, check_encoder
from panolib.models.geometry import Placement, enlarge, first_cell, upsample_to
from panolib.models.unet import EmbeddingUNet
from panolib.models.weights import WeightsError, find_encoder_weights, weights_fingerprint
from panolib.study.grid import _weights
from panolib.training import batch_norm
from panolib.training.batch_norm import adapt_batch_norm, batch_norm_layers, train_mode
from panolib.training.run_specs import BatchNormSpec
from panolib.training.setup import build_instance, build_optimizer, build_semantic, launch
from panolib.training.specs import (
    Augmentation,
    Compute,
    EncoderSpec,
    InstanceNetwork,
    Optimiser,
    SemanticNetwork,
)
from panolib.training.teacher import make_teacher, update_teacher

LITE, TINY = "tf_efficientnet_lite0", "test_efficientnet"
SIZES = [(64, 96), (65, 97), (75, 110), (66, 100)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def packaged() -> Encoder:
    """EfficientNet-Lite0 with the weights of the package, without classifier."""
    return Encoder(LITE, output_stride=32, weights="package").eval()


def photograph(image) -> torch.Tensor:
    """A picture of scikit-image, ImageNet-normalised, its middle square at the classifier's 224 pixels."""
    pixels = torch.from_numpy(image.copy()).movedim(-1, 0)[None].float() / 255
    side = min(pixels.shape[-2:])
    top, left = ((n - side) // 2 for n in pixels.shape[-2:])
    square = pixels[..., top : top + side, left : left + side]
    return normalise(nn.functional.interpolate(square, size=(224, 224), mode="bilinear", antialias=True))


# --- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "classes"),
    [(data.coffee, {967}), (data.cat, {281, 282, 283, 284, 285})],  # espresso; cats of five kinds
    ids=["coffee", "cat"],
)
def test_the_packaged_weights_recognise_pictures(packaged, picture, classes):
    """The encoder's last map through the classifier of the same package names what is to be seen."""
    whole = timm.create_model(LITE).eval()
    whole.load_state_dict(find_encoder_weights(LITE, "package"))
    with torch.no_grad():
        features = packaged(photograph(picture()))[-1]
        probabilities = whole.forward_head(whole.bn2(whole.conv_head(features))).softmax(1)[0]
    assert sum(probabilities[i] for i in classes) > 0.5
    assert int(probabilities.argmax()) in classes


@pytest.mark.parametrize(("name", "weights", "inside"), [(LITE, "package", 126.9), (LITE, None, 127.5)])
def test_images_are_mapped_to_what_the_encoder_was_trained_on(name, weights, inside):
    """The package: (value - 127) / 128. Coordinates behind the colours stay as they are."""
    encoder = Encoder(name, in_channels=5, weights=weights)
    seen = []
    encoder.stages[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    values = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    places = torch.rand(1, 2, 32, 32)
    encoder(torch.cat([normalise(values), places], 1))
    expected = (values - 127.0) / 128 if weights else values / 127.5 - 1
    torch.testing.assert_close(seen[0][:, :3], expected, rtol=0, atol=1e-5)
    assert torch.equal(seen[0][:, 3:], places)


@pytest.mark.parametrize("name", ["resnet18", TINY, "mobilenetv3_small_050", "regnetx_002", "test_byobnet"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_of_a_file_are_those_of_timms_network(name, suffix, tmp_path):
    """All maps equal timm's own; the classifier of the file does not matter."""
    whole = timm.create_model(name, num_classes=7).eval()
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.weight, 0.5, 1.0)
    path = tmp_path / f"weights.{suffix}"
    save_file(whole.state_dict(), path) if suffix == "safetensors" else torch.save(whole.state_dict(), path)
    encoder = Encoder(name, output_stride=32, weights=path).eval()
    image = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True)
        for ours, theirs in zip(encoder(image), expected[-5:], strict=True):
            torch.testing.assert_close(ours, theirs)


def randomise_statistics(network: nn.Module) -> None:
    """Running statistics and affine parameters that are not the neutral 0 and 1."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.bias, -0.2, 0.2)


def torchvision_maps(network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    maps = [network.relu(network.bn1(network.conv1(image)))]
    maps.append(network.layer1(network.maxpool(maps[0])))
    for stage in (network.layer2, network.layer3, network.layer4):
        maps.append(stage(maps[-1]))
    return maps


@pytest.mark.parametrize(
    ("name", "output_stride", "dilated"),
    [
        ("resnet18", 32, None),
        ("resnet50", 32, None),
        ("resnet50", 16, [False, False, True]),
        ("resnet50", 8, [False, True, True]),
    ],
)
def test_resnets_equal_torchvisions_through_a_file(name, output_stride, dilated, tmp_path):
    """Without the counters of batches, which torchvision's first files lack."""
    theirs = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=dilated).eval()
    randomise_statistics(theirs)
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "resnet.pt")
    ours = Encoder(name, output_stride=output_stride, weights=tmp_path / "resnet.pt").eval()
    image = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        for a, b in zip(ours(image), torchvision_maps(theirs, image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_further_channels_of_loaded_weights_begin_at_zero(packaged):
    encoder = Encoder(LITE, output_stride=32, in_channels=5, weights="package").eval()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        for a, b in zip(encoder(torch.cat([image, torch.randn(1, 2, 40, 56)], 1)), packaged(image)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "output_stride"), [(LITE, 16), ("resnet18", 8), ("resnet18", 16)])
def test_dilation_keeps_what_the_strided_network_computes(name, output_stride):
    """Dense maps, subsampled; at odd sizes, where "same" padding is symmetric."""
    strided = Encoder(name, output_stride=32).double().eval()
    randomise_statistics(strided)
    dense = Encoder(name, output_stride=output_stride).double().eval()
    dense.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 161, 193, dtype=torch.float64)
    with torch.no_grad():
        for a, b, stride_a, stride_b in zip(strided(image), dense(image), strided.strides, dense.strides):
            step = stride_a // stride_b
            torch.testing.assert_close(b[..., ::step, ::step], a, rtol=0, atol=1e-9)


def test_a_state_brings_its_own_normalisation(packaged):
    """What is built to be filled reads no weights, and is the network once it is filled."""
    encoder = Encoder(LITE, output_stride=32, weights=None).eval()
    encoder.load_state_dict(packaged.state_dict())
    image = torch.randn(1, 3, 33, 48)
    with torch.no_grad():
        assert torch.equal(encoder(image)[-1], packaged(image)[-1])


def test_weights_that_do_not_fit_are_one_error(tmp_path, monkeypatch):
    state = timm.create_model(TINY).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state | {"blocks.1.0.conv_exp.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(WeightsError, match=r"do not fit test_efficientnet: blocks.1.0.*\(3, 3\), expected"):
        Encoder(TINY, weights=path)
    torch.save({key: value for key, value in state.items() if key != "bn1.weight"}, path)
    with pytest.raises(WeightsError, match=r"bn1\.weight is missing"):
        Encoder(TINY, weights=path)
    with pytest.raises(WeightsError, match=r"do not fit resnet18: it has no blocks.0.0"):
        Encoder("resnet18", weights=path)
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        Encoder(TINY, weights=tmp_path / "no.safetensors")

    tensors = find_encoder_weights(LITE, "package")
    name = next(name for name, value in tensors.items() if value.dim() == 4)
    monkeypatch.setattr(weights_module, "_read_state", lambda path: tensors | {name: torch.zeros(2)})
    with pytest.raises(WeightsError, match=rf"{name} has shape \(2,\), expected \(32, 3, 3, 3\)"):
        Encoder(LITE, weights="package")
    monkeypatch.setattr(weights_module, "_read_state", lambda path: {name: tensors[name]})
    with pytest.raises(WeightsError, match="1 tensors, expected the 296"):
        Encoder(LITE, weights="package")


def test_without_internet_timms_weights_are_one_error(monkeypatch):
    def create_model(name, **options):
        if options.get("pretrained"):
            raise OSError("no route to host")
        return original(name, **options)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(WeightsError, match=r"'imagenet' of tf_efficient.*no route to host.*'package'.*null"):
        Encoder(LITE, weights="imagenet")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(weights_module.PACKAGES, LITE, ("no_such_package", "File", (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(WeightsError, match="no-such-package is not installed"):
        Encoder(LITE, weights="package")


def test_a_file_of_weights_is_in_the_key(tmp_path):
    torch.save({}, tmp_path / "a.pt")
    for weights, n in ((str(tmp_path / "a.pt"), 1), ("package", 0), ("imagenet", 0), (None, 0)):
        fields = {"network": {"encoder": {"name": TINY, "weights": weights}}}
        assert len(_weights(fields)) == n, weights
        assert _weights(fields) == weights_fingerprint(weights)


# --- maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_known_encoders_are_as_they_are_said_to_be(name):
    """Shapes of the maps, number of stages, and every stride that is offered."""
    for stride in ENCODER_STRIDES:
        with torch.device("meta"):
            encoder = Encoder(name, output_stride=stride, in_channels=4)
            maps = encoder(torch.zeros(1, 4, 75, 110))
        assert len(encoder.stages) == KNOWN[name]
        assert encoder.strides == [min(2**i, stride) for i in range(1, 6)]
        for found, channels, step in zip(maps, encoder.channels, encoder.strides, strict=True):
            assert found.shape == (1, channels, -(-75 // step), -(-110 // step))


def averaging(name: str, output_stride: int) -> Encoder:
    """An encoder whose layers average, so that a cell sees what lies around its centre symmetrically."""
    encoder = Encoder(name, output_stride=output_stride).double().eval()
    encoder.gain.fill_(1), encoder.offset.fill_(0)
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    for stage in encoder.stages:
        for name, layer in stage.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(stage, name, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    return encoder


@pytest.mark.parametrize("name", [LITE, "resnet18"])
@pytest.mark.parametrize("size", [(192, 256), (193, 257), (198, 250), (201, 260)])
def test_cells_are_centred_where_the_placement_says(name, size):
    """The centroid of all that one cell in the middle sees of the image."""
    encoder = averaging(name, 16)
    image = torch.full((1, 3, *size), 0.01, dtype=torch.float64, requires_grad=True)
    for features, stride in zip(encoder(image)[:3], encoder.strides):
        row, column = (n // 2 for n in features.shape[-2:])
        (seen,) = torch.autograd.grad(features[0, 0, row, column], image, retain_graph=True)
        for axis, cell in ((0, row), (1, column)):
            share = seen[0].sum((0, 2 - axis))
            centre = (share * torch.arange(size[axis])).sum() / share.sum()
            expected = first_cell(size[axis], stride, encoder.padding) + cell * stride
            assert centre.item() == pytest.approx(expected, abs=1e-6)


def same_taps(stride: int) -> nn.Sequential:
    """Layers with TensorFlow's padding that copy the pixel under their centre."""
    layers = []
    while stride > 1:
        layer = timm.layers.Conv2dSame(1, 1, 5 if layers else 3, stride=2, bias=False)
        nn.init.zeros_(layer.weight)
        layer.weight.data[0, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
        layers.append(layer)
        stride //= 2
    return nn.Sequential(*layers)


def copied(image: torch.Tensor, stride: int) -> torch.Tensor:
    return copied_by(same_taps(stride), image)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("size", SIZES)
def test_positions_come_back_from_same_padding(size, stride):
    """Exactly, between the outermost cells, on the image's grid and on half of it."""
    maps, placement = copied(ramp(size), stride), Placement("receptive_field", stride, "same")
    found = upsample_to(maps, size, placement)
    half = upsample_to(maps, [n // 2 for n in size], placement, image_size=size)
    for axis, n in enumerate(size):
        first, last = maps[0, axis].min(), maps[0, axis].max()
        assert first == first_cell(n, stride, "same")
        expected = torch.arange(n).clamp(first, last).float()
        torch.testing.assert_close(found[0, axis].select(1 - axis, 0), expected, rtol=0, atol=1e-3)
        pixels = (torch.arange(n // 2) + 0.5) * (n / (n // 2)) - 0.5
        torch.testing.assert_close(
            half[0, axis].select(1 - axis, 0), pixels.clamp(first, last), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("size", SIZES)
def test_a_bright_pixel_under_a_cell_comes_back_there(size):
    image = torch.zeros(1, 1, *size)
    row, column = (first_cell(n, 8, "same") + 8 * 3 for n in size)
    image[..., row, column] = 1
    found = upsample_to(copied(image, 8), size, Placement("receptive_field", 8, "same"))[0, 0]
    assert divmod(int(found.argmax()), size[1]) == (row, column) and found.max() == 1


@pytest.mark.parametrize("n", [*range(16, 50), 224])
def test_a_map_is_enlarged_onto_the_map_that_it_was_made_from(n):
    """Steps of 2 and one of 4 agree with where each map's cells sit in the image."""
    middle = copied(ramp((n, n)), 4)
    found = enlarge(copied(ramp((n, n)), 16), middle.shape[-2:], "receptive_field", 4, "same")
    inside = slice(4, middle.shape[-1] - 4)
    torch.testing.assert_close(found[..., inside, inside], middle[..., inside, inside], rtol=0, atol=1e-3)


def column_maps(encoder: Encoder):
    """Let an encoder's maps hold, in every channel, the column of the pixel that their cells sit on."""

    def forward(image):
        maps = []
        for stride, channels in zip(encoder.strides, encoder.channels):
            n_rows, n_columns = (-(-n // stride) for n in image.shape[-2:])
            first = first_cell(image.shape[-1], stride, encoder.padding)
            columns = first + stride * torch.arange(n_columns, dtype=torch.float32)
            maps.append(columns.expand(1, channels, n_rows, n_columns).contiguous())
        return maps

    encoder.forward = forward
    return encoder


@pytest.mark.parametrize("width", [160, 161, 166])
def test_maps_meet_inside_all_networks(width):
    """What is concatenated says the same column, but at the edges, where nothing lies beyond."""
    image, inputs = torch.zeros(1, 3, 64, width), []
    options = {"alignment": "receptive_field"}

    def seen_by(block):
        block.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))

    with torch.no_grad():
        deeplab = DeepLab(column_maps(Encoder(LITE)), 2, version="v3+", head_channels=16, **options).eval()
        assert deeplab.placement == Placement("receptive_field", 4, "same")
        deeplab.aspp.forward = lambda features: features[:, :16]
        deeplab.reduce.forward = lambda features: features[:, :3]
        seen_by(deeplab.decoder)
        deeplab(image)
        unet = EmbeddingUNet(
            column_maps(Encoder(LITE, output_stride=32)), decoder_channels=(4,) * 5, **options
        ).eval()
        for i, block in enumerate(unet.blocks[:-1]):
            seen_by(block)
            block.forward = lambda x, n=unet.encoder.channels[3 - i]: x[:, -n:]
        seen_by(unet.blocks[-1])
        unet.blocks[-1].forward = lambda x: x[:, :4]
        unet.embed = nn.Identity()
        unet(image)
    for joined in inputs[:-1]:
        apart = (joined[:, 0] - joined[:, -1])[..., 4:-4]
        torch.testing.assert_close(apart, torch.zeros_like(apart), rtol=0, atol=1e-3)
    pixels = inputs[-1][0, 0, 0]  # on the image's own grid there is no skip
    torch.testing.assert_close(pixels[4:-4], torch.arange(width).float()[4:-4], rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_both_paths_of_bisenet_see_the_same_places(size):
    """A copying spatial path lies beside the enlarged map of the context path."""
    encoder = column_maps(Encoder(LITE, output_stride=32))
    network, inputs = BiSeNet(encoder, 2, alignment="receptive_field").eval(), []
    network.attention_fine.forward = lambda features: features
    for block in network.spatial:
        nn.init.zeros_(block[0].weight)
        block[0].weight.data[:, 0, 1, 1] = 1
        block[1] = nn.Identity()
    network.fusion.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        network(ramp(size)[:, [1, 1, 1]])
    spatial, fine = inputs[0][0, 0], inputs[0][0, 4 * encoder.channels[0]]
    torch.testing.assert_close(spatial[:, 2:-2], fine[:, 2:-2], rtol=0, atol=1e-3)


def test_an_encoder_that_merges_pairs_has_no_receptive_field_to_sit_on():
    """test_resnet's shortcuts average 2 x 2 pixels, beside strided convolutions."""
    encoder = Encoder("test_resnet")
    assert encoder.padding is None and Encoder("resnet18").padding == "symmetric"
    DeepLab(encoder, 2, version="v3")
    with pytest.raises(ValueError, match=r"'receptive_field', but the strided.*expected 'cell_centre'"):
        DeepLab(encoder, 2, version="v3", alignment="receptive_field")
    with pytest.raises(ValueError, match="centre cells in different ways"):
        EmbeddingUNet(encoder, alignment="receptive_field")


def test_operations_count_layers_with_same_padding():
    """All but the convolutions on 1 x 1 pixels, which both count, are large: no layer is left out."""
    network, shape = Encoder(LITE), (1, 3, 64, 96)
    assert n_operations(network, shape) == clean_operations(network, shape)


# --- what does not learn ----------------------------------------------------------------------------------


def network(frozen: int, **options) -> SemanticNetwork:
    encoder = EncoderSpec(TINY, options.pop("weights", None), frozen)
    return SemanticNetwork("v3+", rates=(1, 2), head_channels=16, encoder=encoder, **options)


def parts(model) -> tuple[list[nn.Module], list[nn.Module]]:
    """Frozen stages, and all that learns."""
    encoder = model.encoder
    frozen = list(encoder.stages[: encoder.frozen])
    return frozen, [*encoder.stages[encoder.frozen :], model.aspp, model.decoder, model.classifier]


def state(modules) -> list[torch.Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def equal(before, after) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]


ADAM = Optimiser("adamw", 0.01, 0.1, 0.9, 10.0, "constant", 0)


@pytest.mark.parametrize("frozen", [0, 1, 3, 6])
def test_frozen_stages_keep_all_that_they_hold_and_the_others_move(frozen):
    """Weights, although AdamW decays them, and statistics, although the network is in train mode."""
    model = build_semantic(network(frozen), 4).train()
    still, moving = parts(model)
    optimizer = build_optimizer(ADAM, model)
    before = state(still), state(moving)
    for _ in range(2):
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    assert all(equal(before[0], state(still)))
    moved = [value for value, same in zip(state(moving), equal(before[1], state(moving))) if same]
    assert all(value.numel() == 0 or value.abs().sum() == 0 for value in moved), len(moved)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert not held & {parameter for stage in still for parameter in stage.parameters()}
    assert all(parameter.grad is None for stage in still for parameter in stage.parameters())


def test_frozen_stages_make_no_graph():
    encoder = Encoder(TINY, frozen=3).train()
    maps = encoder(torch.randn(2, 3, 64, 64))
    assert [found.requires_grad for found in maps] == [False, False, True, True, True]
    assert not any(layer.training for stage in encoder.frozen_stages for layer in stage.modules())
    assert all(stage.training for stage in encoder.stages[3:])
    with torch.no_grad():
        assert not any(found.requires_grad for found in encoder(torch.randn(2, 3, 64, 64)))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_all_that_learns_gets_a_gradient_in_half_precision(precision):
    """Autocast keeps casts that were made without a graph; none of them is of a weight that learns."""
    fabric = launch(Compute("cpu", precision, 0, channels_last=True))
    model = fabric.setup(build_semantic(network(3), 4).train())
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    fabric.backward(model(torch.randn(2, 3, 64, 64)).float().square().mean())
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_batch_norm_of_frozen_stages_is_left_alone_in_every_mode():
    model = build_semantic(network(3), 4)
    norms = {layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}
    frozen = {layer for stage in model.encoder.frozen_stages for layer in stage.modules()} & norms
    assert frozen and set(batch_norm_layers(model)) == norms - frozen
    for way in ("target", "frozen"):
        train_mode(model, way)
        assert not any(layer.training for layer in frozen)
        assert all(layer.training == (way == "target") for layer in norms - frozen)


def test_batch_norm_adaptation_leaves_frozen_stages_alone(monkeypatch):
    """Strict AdaBN, which forgets all other statistics first."""
    model = build_semantic(network(3), 4)
    still, moving = parts(model)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(0.5, 1.0)
    before = state(still), state(moving[:2])
    batches = [{"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)}] * 2
    monkeypatch.setattr(batch_norm, "batches", lambda *_, **__: torch.utils.data.DataLoader(batches, None))
    crop = Augmentation(64, 64, (1.0, 1.0), "image", 0.0, 0.0, 0.0, None)
    compute = Compute("cpu", "32-true", 0, False)
    spec = BatchNormSpec(
        label_set="cityscapes", source=None, target="target", augmentation=crop, batch_size=2, n_batches=2,
        momentum=0.1, compute=compute, seed=0,
    )  # fmt: skip
    adapt_batch_norm(spec, model, None, [])
    assert all(equal(before[0], state(still)))
    assert not all(equal(before[1], state(moving[:2])))


def test_the_teacher_copies_frozen_stages():
    student = build_semantic(network(3), 4).train()
    teacher = make_teacher(student)
    optimizer = build_optimizer(ADAM, student)
    student(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    update_teacher(teacher, student, decay=0.5)
    still, moving = (parts(teacher)[i] for i in (0, 1))
    assert all(equal(state(still), state(parts(student)[0])))
    assert not all(equal(state(moving), state(parts(student)[1])))
    assert all(equal(state([teacher.encoder]), state([copy.deepcopy(teacher).encoder])))


@pytest.mark.parametrize(("weights", "scale"), [("package", 1.0), (None, 10.0)])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_pretrained_encoder_learns_slowly(weights, scale, pretrained):
    """Also where its weights are not read, as those of an earlier stage follow."""
    spec = SemanticNetwork("v3", rates=(1,), head_channels=8, encoder=EncoderSpec(LITE, weights, 3))
    model = build_semantic(spec, 4, pretrained=pretrained)
    rates = {
        parameter: group["lr"] / 0.01
        for group in build_optimizer(ADAM, model).param_groups
        for parameter in group["params"]
    }
    for parameter in model.encoder.stages[3:].parameters():
        assert rates[parameter] == pytest.approx(scale)
    assert rates[model.classifier.weight] == pytest.approx(10.0)


# --- settings ---------------------------------------------------------------------------------------------

SEMANTIC = {"version": "v3+", "output_stride": 16, "rates": [3, 6, 9], "head_channels": 64}
INSTANCE = {"decoder_channels": [8, 8, 8, 8], "embedding_dim": 4, "output_stride": 2}
PACKAGED = {"name": LITE, "weights": "package", "frozen": 3}


def test_a_profile_may_say_an_encoder():
    semantic = from_mapping(SemanticNetwork, SEMANTIC | {"encoder": PACKAGED}, where="here")
    model = build_semantic(semantic, 19, pretrained=False)
    assert (model.output_stride, model.encoder.strides[-1], model.encoder.frozen) == (4, 16, 3)
    instance = from_mapping(InstanceNetwork, INSTANCE | {"encoder": PACKAGED}, where="here")
    with torch.no_grad():
        assert build_instance(instance).eval()(torch.randn(1, 3, 64, 96)).shape == (1, 4, 32, 48)
    assert canonical_json(semantic) == (
        '{"encoder":{"frozen":3,"name":"tf_efficientnet_lite0","weights":"package"},"head_channels":64,'
        '"output_stride":16,"rates":[3,6,9],"version":"v3+"}'
    )


@pytest.mark.parametrize(("cls", "base"), [(SemanticNetwork, SEMANTIC), (InstanceNetwork, INSTANCE)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "encoder: missing key, expected EncoderSpec"),
        ({"encoder": PACKAGED, "depth": 10}, "depth: unknown key"),
        ({"encoder": PACKAGED | {"name": "tf_efficientnet_light0"}}, "did you mean tf_efficientnet_lite0"),
        ({"encoder": PACKAGED | {"name": "resnet50"}}, "'package', which tf_efficientnet_lite0 has, but not"),
        ({"encoder": PACKAGED | {"weights": "IMAGENET1K_V1"}}, "expected 'imagenet', 'package', a file"),
        ({"encoder": PACKAGED | {"weights": "no/such/file.pt"}}, "no such file"),
        ({"encoder": PACKAGED | {"frozen": 9}}, "frozen is 9, expected 0 to 8, its stages"),
        ({"encoder": PACKAGED | {"frozen": -1}}, "encoder.frozen: expected >= 0"),
        ({"encoder": {"name": "test_vit", "weights": None}}, "'test_vit' has no output_stride"),
        ({"encoder": {"name": "convnext_atto", "weights": None}}, "'convnext_atto' gives maps of strides"),
        ({"encoder": {"name": "hrnet_w18_small", "weights": None}}, "'hrnet_w18_small'"),
    ],
)
def test_a_wrong_combination_is_one_error(cls, base, changes, message):
    with pytest.raises(ProfileError, match=message) as error:
        from_mapping(cls, base | changes, where="my.yaml")
    assert "\n" not in str(error.value)


def test_a_stride_that_an_encoder_cannot_have_is_an_error():
    with pytest.raises(ProfileError, match=r"output_stride: expected 8, 16 or 32, found 4"):
        from_mapping(SemanticNetwork, SEMANTIC | {"encoder": PACKAGED, "output_stride": 4}, where="here")
    with pytest.raises(ProfileError, match=r"geometry is 'sac', which resnet18.* but not 'tf_"):
        from_mapping(SemanticNetwork, SEMANTIC | {"encoder": PACKAGED, "geometry": "sac"}, where="here")
    with pytest.raises(ValueError, match="output_stride 64"):
        check_encoder("resnet18", 64, 0, None)
