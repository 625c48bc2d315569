"""ResNet encoders made of torchvision's blocks, with a chosen output stride and width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from panolib.models.weights import WeightsError, find_weights

LAYOUTS = {  # torchvision's block, number of them in each stage
    10: ("BasicBlock", (1, 1, 1, 1)),
    18: ("BasicBlock", (2, 2, 2, 2)),
    50: ("Bottleneck", (3, 4, 6, 3)),
    101: ("Bottleneck", (3, 4, 23, 3)),
}
OUTPUT_STRIDES = (4, 8, 16, 32)
Geometry = Literal["torchvision", "sac"]


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
