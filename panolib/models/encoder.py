"""Encoders: a network of timm's, with or without ImageNet weights, that gives five feature maps."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from panolib.data.photometry import IMAGENET_MEAN, IMAGENET_STD
from panolib.models.geometry import Padding
from panolib.models.weights import (
    RESNETS,
    WeightsError,
    channel_statistics,
    check_encoder_weights,
    find_encoder_weights,
)

Geometry = Literal["torchvision", "sac"]

# Encoders that the tests know, and their stages; others are asked of timm, which takes seconds to import.
KNOWN = {"tf_efficientnet_lite0": 8, "resnet18": 5, "resnet50": 5, "resnet101": 5, "test_efficientnet": 6}
ENCODER_STRIDES = (8, 16, 32)


class Encoder(nn.Module):
    """A network of timm's without its classifier; returns five feature maps.

    The images that come in are ImageNet-normalised (`data.photometry.normalise`), as everywhere in the
    project; what the network was trained on may be something else, (value - 127) / 128 for EfficientNet-Lite.
    So the first thing it does is an affine map of the three colours to its own mean and deviation.

    Frozen stages do not learn: their parameters need no gradient, no graph is made of them, and their batch
    norm keeps its statistics whatever the mode of the network.

    From `output_stride` on, strides are replaced by dilation, the à trous way: a dilated map, subsampled,
    equals the map of the strided network (Chen et al. 2017, arXiv:1706.05587).

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
        this network. Of a ResNet torchvision's by their name ("IMAGENET1K_V1"), downloaded once. Or a file
        (torch or safetensors) with a state dict of timm's network of this name, for ResNets torchvision's as
        well, which has the same names; "~" and variables are expanded, a relative path is searched from the
        working folder and from the project's. None: timm's initialisation.
    load : bool
        False leaves the weights unread, for a network whose state is loaded next.
    geometry : {"torchvision", "sac"}
        Of a ResNet: "sac" is that of SAC's reference code (`as_in_sac`), which its checkpoints want.

    `channels` and `strides` have one entry per feature map. `padding` is that of its strided layers, which
    says where cells sit (`geometry.first_cell`), None where they differ. `pretrained`: whether it comes with
    weights, read or not. Raises ValueError for a network that timm does not have, that has no such maps or
    geometry, or not so many stages, and WeightsError for weights that do not exist, cannot be had or do not
    fit.
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
        geometry: Geometry = "torchvision",
    ):
        super().__init__()
        check_geometry(name, geometry)
        network = _timm_features(name, output_stride, in_channels)
        check_encoder_weights(name, weights)
        mean, std = channel_statistics(name, weights) or (
            network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        )  # fmt: skip
        if weights is not None and load:
            first = network.pretrained_cfg["first_conv"]
            state = find_encoder_weights(name, weights)
            network.load_state_dict(_fitting(state, network, f"{first}.weight", name, weights))

        if geometry == "sac":
            as_in_sac(network)
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

        Map i has shape [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])]; with the pool of "sac"
        up to one row and one column more, centred beyond the last pixel.
        """
        hidden, maps = image * self.gain + self.offset, []
        for number, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.frozen):
                hidden = stage(hidden)
            if number in self._maps:
                maps.append(hidden)
        return maps


def as_in_sac(network: nn.Module) -> None:
    """Bring a ResNet of timm's, whose blocks are torchvision's, to the geometry of SAC's.

    Three things differ, neither the shape nor the name of a weight. SAC strides in the first, 1x1 convolution
    of a bottleneck, as in Caffe, so that the 3x3 one already works on the coarse grid. It pools the stem in
    ceil mode, so that maps have one more cell where an even size is halved: 65 x 129 at stride 8 for 512 x
    1024. And a stage that lost its stride is dilated from its first 3x3 convolution on. Cell i of a map of
    stride s stays centred on pixel i * s. Beside it SAC upsamples logits between aligned corners. Araslanov &
    Roth 2021, arXiv:2105.00097, reference code.
    """
    network.maxpool.ceil_mode = True
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        block, bottleneck = stage[0], hasattr(stage[0], "conv3")
        if bottleneck:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
        first = block.conv2 if bottleneck else block.conv1
        first.dilation = first.padding = stage[-1].conv2.dilation


def check_geometry(name: str, geometry: str) -> None:
    """Raise a ValueError unless an encoder has this geometry."""
    if geometry not in get_args(Geometry):
        raise ValueError(f"encoder geometry is {geometry!r}, expected one of {list(get_args(Geometry))}")
    if geometry != "torchvision" and name not in RESNETS:
        raise ValueError(f"geometry is {geometry!r}, which {', '.join(RESNETS)} have, but not {name!r}")


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # a widget of its downloads
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
    import timm

    ours = network.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(name).state_dict()
    if alien := sorted(state.keys() - whole.keys()):
        raise WeightsError(f"weights {str(weights)!r} do not fit {name}: it has no {alien[0]}")
    given = {key.replace(".", "_"): value for key, value in state.items()}  # some of timm's wrappers rename
    fitting = {}
    for key, value in ours.items():
        found = given.get(key.replace(".", "_"))
        if found is not None and key == first and found.shape[1] < value.shape[1]:
            extra = found.new_zeros(found.shape[0], value.shape[1] - found.shape[1], *found.shape[2:])
            found = torch.cat([found, extra], dim=1)
        if found is None and key.endswith("num_batches_tracked"):  # torchvision's first files have none
            found = torch.zeros_like(value)
        if found is None or found.shape != value.shape:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise WeightsError(
                f"weights {str(weights)!r} do not fit {name}: {key} {what}, "
                f"expected shape {tuple(value.shape)}"
            )
        fitting[key] = found
    return fitting
