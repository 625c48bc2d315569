"""DeepLab V2, V3 and V3+ heads on an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panolib.models.encoder import Encoder
from panolib.models.geometry import Alignment, Placement, enlarge
from panolib.models.layers import conv_norm_relu, init_decoder, normalise_pooled

VERSIONS = ("v2", "v3", "v3+")


class DeepLab(nn.Module):
    """Semantic segmentation network; the caller upsamples its logits, by `placement`.

    Parameters
    ----------
    encoder : Encoder
        The thesis's choice is output stride 8 for "v2" and 16 for "v3" and "v3+".
    n_classes : int
        Channels of the logits.
    version : {"v2", "v3", "v3+"}
        v2: atrous 3x3 convolutions straight to the classes, summed. v3: 1x1, atrous 3x3 and image-pooling
        branches with batch norm, concatenated. v3+: v3, upsampled and joined with the encoder's reduced
        second map, of stride 4 (layer1 of a ResNet).
    rates : sequence of int, optional
        Dilations of the atrous branches, in pixels of the encoder's last map. By default 6, 12, 18, 24 for
        v2; for v3 and v3+ 6, 12, 18 at output stride 16, doubled at 8 (the same field of view). Small images
        need smaller rates: a tap that always falls outside the map learns nothing.
    head_channels : int
        Width of the v3 and v3+ head; the reduced low-level features of v3+ are 3/16 as wide.
    alignment : {"cell_centre", "receptive_field", "corners"}
        Where cells are taken to sit when a map is upsampled: the logits, and inside v3+. SAC: "corners".

    `output_stride` is that of the logits: the encoder's last; for v3+ that of its second map. Raises
    ValueError if the version is unknown or `rates` is empty or not positive.

    Chen et al., arXiv:1606.00915 (V2), arXiv:1706.05587 (V3), arXiv:1802.02611 (V3+); thesis section 6.1 with
    two corrections (V2 branches are summed, the 1x1 convolution of V3+ reduces).
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        *,
        version: str = "v2",
        rates: Sequence[int] | None = None,
        head_channels: int = 256,
        alignment: Alignment = "cell_centre",
    ):
        super().__init__()
        if version not in VERSIONS:
            raise ValueError(f"DeepLab version is {version!r}, expected one of {VERSIONS}")
        if rates is None:
            stride = encoder.strides[-1]
            rates = (6, 12, 18, 24) if version == "v2" else [rate * 16 // stride for rate in (6, 12, 18)]
        rates = tuple(rates)
        if not rates or min(rates) < 1:
            raise ValueError(f"DeepLab rates are {rates}, expected at least one integer >= 1")
        self.encoder, self.version, self.rates = encoder, version, rates
        self.output_stride = encoder.strides[1] if version == "v3+" else encoder.strides[-1]
        self.placement = Placement(alignment, self.output_stride, encoder.padding)
        channels = encoder.channels[-1]

        if version == "v2":
            self.branches = nn.ModuleList(
                nn.Conv2d(channels, n_classes, 3, padding=rate, dilation=rate) for rate in rates
            )
            _init_classifier(*self.branches)
            return

        self.aspp = AtrousPyramid(channels, head_channels, rates)
        self.classifier = nn.Conv2d(head_channels, n_classes, 1)
        if version == "v3+":
            low_level_channels = 3 * head_channels // 16  # 48 of 256, as published
            self.reduce = conv_norm_relu(encoder.channels[1], low_level_channels, 1)
            self.decoder = nn.Sequential(
                conv_norm_relu(head_channels + low_level_channels, head_channels),
                conv_norm_relu(head_channels, head_channels),
            )
        init_decoder(self)
        _init_classifier(self.classifier)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, n_classes, h, w] of `image` [B, in_channels, H, W]; h = ceil(H / output_stride).

        With an encoder of geometry "sac" up to one row and one column more.
        """
        return self.decode(self.encoder(image))

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits of the encoder's feature maps."""
        if self.version == "v2":
            logits = self.branches[0](features[-1])
            for branch in self.branches[1:]:
                logits = logits + branch(features[-1])
            return logits
        hidden = self.aspp(features[-1])
        if self.version == "v3+":
            low_level = self.reduce(features[1])
            ratio = self.encoder.strides[-1] // self.output_stride
            alignment, padding = self.placement.alignment, self.placement.padding
            hidden = enlarge(hidden, low_level.shape[-2:], alignment, ratio, padding)
            hidden = self.decoder(torch.cat([hidden, low_level], dim=1))
        return self.classifier(hidden)


class AtrousPyramid(nn.Module):
    """ASPP of DeepLab V3: 1x1, atrous 3x3 and image-pooling branches, concatenated and projected."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1),
                *(conv_norm_relu(in_channels, channels, dilation=rate) for rate in rates),
                ImagePooling(in_channels, channels),
            ]
        )
        self.project = nn.Sequential(
            conv_norm_relu(len(self.branches) * channels, channels, 1), nn.Dropout(0.1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, channels, h, w]."""
        return self.project(torch.cat([branch(features) for branch in self.branches], dim=1))


class ImagePooling(nn.Module):
    """Image features of DeepLab V3: global mean, 1x1 convolution, batch norm, ReLU, spread over the map."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, channels, h, w]."""
        pooled = normalise_pooled(self.norm, self.conv(features.mean(dim=(2, 3), keepdim=True)))
        return F.relu(pooled).expand(-1, -1, *features.shape[-2:])


def _init_classifier(*layers: nn.Conv2d) -> None:
    """Weights N(0, 0.01), no bias: near-uniform class scores at the start."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
