"""Encoders: a network of timm's with ImageNet weights, or a thin ResNet of torchvision's blocks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from panolib.data.photometry import IMAGENET_MEAN, IMAGENET_STD
from panolib.models.geometry import Padding
from panolib.models.weights import (
    WeightsError,
    channel_statistics,
    check_encoder_weights,
    find_encoder_weights,
    find_weights,
)

LAYOUTS = {  # torchvision's block, number of them in each stage
    10: ("BasicBlock", (1, 1, 1, 1)),
    18: ("BasicBlock", (2, 2, 2, 2)),
    50: ("Bottleneck", (3, 4, 6, 3)),
    101: ("Bottleneck", (3, 4, 23, 3)),
}
OUTPUT_STRIDES = (4, 8, 16, 32)
Geometry = Literal["torchvision", "sac"]

# Encoders that the tests know, and their stages; others are asked of timm, which takes seconds to import.
KNOWN = {"tf_efficientnet_lite0": 8, "resnet18": 5, "resnet50": 5, "resnet101": 5, "test_efficientnet": 6}
ENCODER_STRIDES = (8, 16, 32)


class Encoder(nn.Module):
    """A network of timm's without its classifier; returns five feature maps, as `ResNetEncoder` does.

    The images that come in are ImageNet-normalised (`data.photometry.normalise`), as everywhere in the
    project; what the network was trained on may be something else, (value - 127) / 128 for EfficientNet-Lite.
    So the first thing it does is an affine map of the three colours to its own mean and deviation.

    Frozen stages do not learn: their parameters need no gradient, no graph is made of them, and their batch
    norm keeps its statistics whatever the mode of the network.

    Parameters
    ----------
    name : str
        Of timm's: "tf_efficientnet_lite0", "resnet50", ... One with five maps of strides 2, 4, 8, 16, 32.
    output_stride : {8, 16, 32}
        Largest stride of any map, in pixels of the image; later strides become dilation.
    in_channels : int
        Channels of the image. Beyond three, loaded weights get zeros for the further channels.
    frozen : int
        Stages that do not learn: 0 none, 1 the stem, 2 the stem and the first stage behind it, ...
    weights : str, Path or None
        "imagenet": timm's, downloaded once. "package": of the pip package that `models.weights` knows for
        this network. Or a file (torch or safetensors) with a state dict of timm's network of this name, for
        ResNets torchvision's as well. None: timm's initialisation.
    load : bool
        False leaves the weights unread, for a network whose state is loaded next.

    Attributes
    ----------
    channels, strides : list of int
        One entry per feature map.
    padding : {"symmetric", "same"} or None
        Of its strided layers, which says where cells sit (`geometry.first_cell`); None: they differ.
    pretrained : bool
        Whether it comes with weights, read or not.

    Raises
    ------
    ValueError
        For a network that timm does not have, that has no such maps, or that has not so many stages.
    WeightsError
        A ValueError: for weights that do not exist, cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 16,
        in_channels: int = 3,
        frozen: int = 0,
        weights: str | Path | None = None,
        load: bool = True,
    ):
        super().__init__()
        network = _timm_features(name, output_stride, in_channels)
        check_encoder_weights(name, weights)
        mean, std = channel_statistics(name, weights) or (
            network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        )  # fmt: skip
        if weights is not None and load:
            first = network.pretrained_cfg["first_conv"]
            state = find_encoder_weights(name, weights)
            network.load_state_dict(_fitting(state, network, f"{first}.weight", name, weights))

        self.padding = _padding(network)
        stages, self._maps = _stages(network)
        self.stages = nn.ModuleList(stages)
        _check_frozen(name, frozen, len(stages))
        self.name, self.in_channels, self.frozen = name, in_channels, frozen
        self.pretrained = weights is not None
        self.channels, self.strides = network.feature_info.channels(), network.feature_info.reduction()
        # in the state dict: what a network takes its images to be goes with its weights
        rgb, extra = (torch.tensor(values)[:, None, None] for values in (std, [1.0] * (in_channels - 3)))
        mean, imagenet_mean, imagenet_std = (
            torch.tensor(values)[:, None, None] for values in (mean, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("gain", torch.cat([imagenet_std / rgb, extra]))
        self.register_buffer("offset", torch.cat([(imagenet_mean - mean) / rgb, 0 * extra]))
        for stage in self.frozen_stages:
            stage.requires_grad_(False)
        self.train()

    @property
    def frozen_stages(self) -> list[nn.Module]:
        """The stages that do not learn."""
        return list(self.stages[: self.frozen])

    def train(self, mode: bool = True) -> Encoder:
        """The mode of all stages but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for stage in self.frozen_stages:
            stage.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Five feature maps of `image` [B, in_channels, H, W], from stride 2 on.

        Map i has shape [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])].
        """
        hidden, maps = image * self.gain + self.offset, []
        for number, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.frozen):
                hidden = stage(hidden)
            if number in self._maps:
                maps.append(hidden)
        return maps


def check_encoder(name: str, output_stride: int, frozen: int, weights: str | Path | None) -> None:
    """Raise a ValueError unless there is such an encoder. timm is not asked for those that are KNOWN."""
    if name in KNOWN and output_stride in ENCODER_STRIDES:
        check_encoder_weights(name, weights)
        _check_frozen(name, frozen, KNOWN[name])
        return
    with torch.device("meta"):
        Encoder(name, output_stride=output_stride, frozen=frozen, weights=weights, load=False)


def _check_frozen(name: str, frozen: int, n_stages: int) -> None:
    """Raise ValueError unless so many stages can be frozen."""
    if not 0 <= frozen <= n_stages:
        raise ValueError(f"encoder {name!r}: frozen is {frozen}, expected 0 to {n_stages}, its stages")


def _timm_features(name: str, output_stride: int, in_channels: int) -> nn.Module:
    """timm's network of feature maps. ValueError if they are not the five that decoders take."""
    import timm  # seconds to import: only for those who build a network

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"encoder is {name!r}, expected the name of a network of timm's{hint}")
    expected = [min(2**i, output_stride) for i in range(1, 6)]
    options = {"features_only": True, "output_stride": output_stride, "in_chans": in_channels}
    try:
        if output_stride not in ENCODER_STRIDES:
            raise ValueError(f"expected one of {ENCODER_STRIDES}")
        network = timm.create_model(name, **options)
        found = network.feature_info.reduction()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # as each network of timm's has it
        reason = f" ({error})" if str(error) else ""
        raise ValueError(f"encoder {name!r} has no output_stride {output_stride!r}{reason}") from error
    if found != expected or not (hasattr(network, "blocks") or hasattr(network, "return_layers")):
        raise ValueError(
            f"encoder {name!r} gives maps of strides {found}, expected {expected} of stages in a row, as of "
            f"{', '.join(KNOWN)}"
        )
    return network


def _stages(network: nn.Module) -> tuple[list[nn.Sequential], set[int]]:
    """The stem and the stages of timm's network, in order, and which of them give a map."""
    children = dict(network.named_children())
    if "blocks" in children:  # EfficientNet and its kin: a stage may end without a map
        blocks = children.pop("blocks")
        stem = nn.Sequential(*children.values())
        return [stem, *blocks], set(network._stage_out_idx)
    stages, parts = [], []
    for name, part in children.items():
        parts.append(part)
        if name in network.return_layers:
            stages.append(nn.Sequential(*parts))
            parts = []
    return stages, set(range(len(stages)))


def _padding(network: nn.Module) -> Padding | None:
    """What all strided layers of a network do, layers that merge pairs of pixels evenly among them: None."""
    found = set()
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            continue
        kernel, stride, padding = (
            value if isinstance(value, tuple) else (value, value)
            for value in (layer.kernel_size, layer.stride, layer.padding)
        )
        if max(stride) == 1:
            continue
        odd = all(side % 2 for side in kernel)
        if type(layer).__name__.endswith("Same"):  # timm's layers, which pad as TensorFlow does
            found.add("same" if odd and min(kernel) > 1 else None)
        else:
            found.add("symmetric" if odd and padding == tuple(side // 2 for side in kernel) else None)
    return found.pop() if len(found) == 1 else None


def _fitting(
    state: Mapping[str, Tensor], network: nn.Module, first: str, name: str, weights: str | Path
) -> dict[str, Tensor]:
    """What `network` takes of a state dict of the whole network; WeightsError unless every tensor fits."""
    ours = network.state_dict()
    given = {key.replace(".", "_"): value for key, value in state.items()}  # some of timm's wrappers rename
    fitting = {}
    for key, value in ours.items():
        found = given.get(key.replace(".", "_"))
        if found is not None and key == first and found.shape[1] < value.shape[1]:
            extra = found.new_zeros(found.shape[0], value.shape[1] - found.shape[1], *found.shape[2:])
            found = torch.cat([found, extra], dim=1)
        if found is None or found.shape != value.shape:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise WeightsError(
                f"weights {str(weights)!r} do not fit {name}: {key} {what}, "
                f"expected shape {tuple(value.shape)}"
            )
        fitting[key] = found
    return fitting


class ResNetEncoder(nn.Module):
    """ResNet without its classifier; returns the feature maps of the stem and of the four stages.

    Module names are torchvision's, so its checkpoints load unchanged. From `output_stride` on, strides are
    replaced by dilation, the à trous way: a dilated map, subsampled, equals the map of the strided network.

    Cell i of a map of stride s is centred on pixel i * s (`geometry.Placement`, "receptive_field"), whatever
    the `geometry`. SAC's ResNet differs from torchvision's in three ways, which change neither the shape nor
    the name of a weight. It strides in the first, 1x1 convolution of a bottleneck, as in Caffe, so that the
    3x3 one already works on the coarse grid. It pools the stem in ceil mode, so that maps have one more cell
    where an even size is halved: 65 x 129 at stride 8 for 512 x 1024. And a stage that lost its stride is
    dilated from its first 3x3 convolution on. Beside it SAC upsamples logits between aligned corners. The
    ImageNet weights of torchvision belong to its own geometry, SAC's checkpoints to "sac".

    Parameters
    ----------
    depth : {10, 18, 50, 101}
        10 has one `BasicBlock` a stage, for small CPU studies; the others are torchvision's.
    width : int
        Channels of the stem; the stages have 1, 2, 4, 8 times as many (four times more with bottlenecks).
    output_stride : {4, 8, 16, 32}
        Largest stride of any feature map, in pixels of the image.
    stem_pool : bool
        False leaves out the max pool after the stem: the strides are then 2, 2, 4, 8, 16 at most.
    in_channels : int
        Channels of the image. Beyond three, loaded weights get zeros for the further channels.
    weights : str, Path or None
        Name of torchvision weights ("IMAGENET1K_V1", downloaded once by torchvision) or a file with a
        torchvision ResNet state dict; "~" and variables are expanded, a relative path is searched from the
        working folder and from the project's. None initialises as He et al. 2015 (fan-out).
    geometry : {"torchvision", "sac"}
        Where bottlenecks stride, how the stem pools and what the first block of a dilated stage sees; above.

    Attributes
    ----------
    channels, strides : list of int
        One entry per feature map: stem, layer1 .. layer4.

    Raises
    ------
    ValueError
        For a depth, stride or geometry that does not exist.
    WeightsError
        A ValueError: for weights that do not exist, cannot be downloaded or read, or are of another shape.

    References
    ----------
    He et al. 2016, arXiv:1512.03385; dilation as Chen et al. 2017, arXiv:1706.05587; "sac": Araslanov & Roth
    2021, arXiv:2105.00097, reference code.
    """

    padding = "symmetric"

    def __init__(
        self,
        depth: int = 18,
        *,
        width: int = 64,
        output_stride: int = 32,
        stem_pool: bool = True,
        in_channels: int = 3,
        weights: str | Path | None = None,
        geometry: Geometry = "torchvision",
    ):
        super().__init__()
        if depth not in LAYOUTS:
            raise ValueError(f"encoder depth is {depth!r}, expected one of {sorted(LAYOUTS)}")
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"encoder output_stride is {output_stride!r}, expected one of {OUTPUT_STRIDES}")
        if geometry not in get_args(Geometry):
            raise ValueError(f"encoder geometry is {geometry!r}, expected one of {list(get_args(Geometry))}")
        from torchvision.models import resnet  # seconds to import: only for those who build a network

        block, n_blocks = getattr(resnet, LAYOUTS[depth][0]), LAYOUTS[depth][1]
        self.depth, self.in_channels = depth, in_channels

        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        sac = geometry == "sac"
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=sac) if stem_pool else nn.Identity()

        self.channels, self.strides = [width], [2]
        stride, dilation = (4 if stem_pool else 2), 1       # of the map that enters the next stage
        for index, n in enumerate(n_blocks):
            step = 1 if index == 0 else 2
            dilate = stride * step > output_stride
            stage = _stage(
                block, self.channels[-1], width * 2**index, n,
                stride=1 if dilate else step,
                first_dilation=dilation * step if dilate and sac else dilation,
                dilation=dilation * step if dilate else dilation,
            )
            if sac:
                _stride_early(stage[0])
            self.add_module(f"layer{index + 1}", stage)
            stride, dilation = (stride, dilation * step) if dilate else (stride * step, dilation)
            self.channels.append(width * 2**index * block.expansion)
            self.strides.append(stride)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            state = find_weights(weights, depth)
            try:
                self.load_torchvision_state(state)
            except ValueError as error:
                raise WeightsError(f"weights {str(weights)!r}: {error}") from error

    def forward(self, image: Tensor) -> list[Tensor]:
        """Feature maps [stem, layer1, layer2, layer3, layer4] of `image` [B, in_channels, H, W].

        Map i has shape [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])]; with the pool of "sac"
        up to one row and one column more, centred beyond the last pixel.
        """
        features = [self.relu(self.bn1(self.conv1(image)))]
        features.append(self.layer1(self.maxpool(features[0])))
        for stage in (self.layer2, self.layer3, self.layer4):
            features.append(stage(features[-1]))
        return features

    def load_torchvision_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the state dict of a torchvision ResNet of the same depth and width, without its classifier.

        Raises
        ------
        ValueError
            If a tensor is missing, unknown or of another shape; the message names it.
        """
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        first = state.get("conv1.weight")
        if first is not None and first.shape[1] < self.in_channels:
            extra = first.new_zeros(first.shape[0], self.in_channels - first.shape[1], *first.shape[2:])
            state["conv1.weight"] = torch.cat([first, extra], dim=1)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            first = " ".join(line.strip()[:300] for line in str(error).splitlines()[:8])
            raise ValueError(
                f"weights do not fit a ResNet-{self.depth} of width {self.channels[0]}: {first}"
            ) from error


def _stage(block, in_channels, planes, n_blocks, *, stride, first_dilation, dilation) -> nn.Sequential:
    """One torchvision stage whose 3x3 convolutions get the dilations of the à trous rule."""
    channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    blocks = [block(in_channels, planes, stride, downsample)]
    blocks += [block(channels, planes) for _ in range(1, n_blocks)]
    stage = nn.Sequential(*blocks)

    # BasicBlock refuses dilation in its constructor, so both kinds of block are patched after building. The
    # stage's first 3x3 convolution is the one that lost its stride: it still sees the previous grid.
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    for position, convolution in enumerate(convolutions):
        step = first_dilation if position == 0 else dilation
        convolution.dilation = convolution.padding = (step, step)
    return stage


def _stride_early(block: nn.Module) -> None:
    """Move the stride of a bottleneck from its 3x3 convolution to the 1x1 one before; others stay."""
    if hasattr(block, "conv3"):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
