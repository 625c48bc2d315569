"""BiSeNet: a shallow path that keeps detail, an encoder that gathers context, and their fusion."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panolib.models.encoder import Encoder
from panolib.models.geometry import Alignment, Padding, Placement, enlarge
from panolib.models.layers import conv_norm_relu, init_decoder, normalise_pooled


class BiSeNet(nn.Module):
    """Real-time semantic segmentation network; the caller upsamples its logits.

    The context path gives the last two maps of the encoder, the spatial path a map of half the stride of the
    coarser but one: 1/8 beside 1/16 and 1/32.

    The reference upsamples before its last 1x1 convolution and before those of the auxiliary heads. Both are
    linear maps, one over channels and one over places, so their order does not matter; here the convolution
    comes first, on fewer pixels.

    In the sources the encoder is ResNet-18 or ResNet-101 with output stride 32. The spatial path is as wide
    as the encoder's first map, and 2 and 4 times that, and pads as the encoder does: both see the same
    places. The fused features have `n_classes` channels, 256 in the original. `alignment` says where cells
    are taken to sit when a map is upsampled; the reference: "cell_centre". `output_stride` and `placement`
    are those of all logits. Yu et al. 2018, arXiv:1808.00897.
    """

    n_heads = 3  # main, the finer and the coarser map of the context path

    def __init__(self, encoder: Encoder, n_classes: int, *, alignment: Alignment = "cell_centre"):
        super().__init__()
        self.encoder = encoder
        self.output_stride = encoder.strides[3] // 2
        self.placement = Placement(alignment, self.output_stride, encoder.padding)
        width, (fine, coarse) = encoder.channels[0], encoder.channels[3:]
        halvings = round(math.log2(self.output_stride))
        steps = [2 if i < halvings else 1 for i in range(3)]
        channels = [encoder.in_channels, width, 2 * width, 4 * width]
        self.spatial = nn.Sequential(
            *(_spatial_step(*pair, step, encoder.padding) for pair, step in zip(pairwise(channels), steps))
        )
        self.attention_fine = AttentionRefinement(fine)
        self.attention_coarse = AttentionRefinement(coarse)
        self.fusion = FeatureFusion(channels[-1] + fine + coarse, n_classes)
        self.classifier = nn.Conv2d(n_classes, n_classes, 1)
        self.auxiliary_fine = nn.Conv2d(fine, n_classes, 1)
        self.auxiliary_coarse = nn.Conv2d(coarse, n_classes, 1)
        init_decoder(self)

    def forward(self, image: Tensor, *, every_head: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits [B, n_classes, h, w] of `image` [B, in_channels, H, W]; h = ceil(H / output_stride).

        `every_head`: three logits of that shape, of the main head, of the finer and of the coarser map.
        """
        spatial = self.spatial(image)
        size = spatial.shape[-2:]
        fine, coarse = self.encoder(image)[3:]
        tail = coarse.mean(dim=(2, 3), keepdim=True)
        fine, coarse = self.attention_fine(fine), self.attention_coarse(coarse) * tail
        fine_ratio, coarse_ratio = (stride // self.output_stride for stride in self.encoder.strides[3:])
        alignment, padding = self.placement.alignment, self.placement.padding

        def enlarged(fine: Tensor, coarse: Tensor) -> list[Tensor]:
            ratios = zip((fine, coarse), (fine_ratio, coarse_ratio))
            return [enlarge(maps, size, alignment, ratio, padding) for maps, ratio in ratios]

        logits = self.classifier(self.fusion(torch.cat([spatial, *enlarged(fine, coarse)], dim=1)))
        if not every_head:
            return logits
        return logits, *enlarged(self.auxiliary_fine(fine), self.auxiliary_coarse(coarse))


class AttentionRefinement(nn.Module):
    """Weights for channels, from their global mean: 1x1 convolution, batch norm, sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """[B, channels, h, w], weighted."""
        pooled = self.conv(features.mean(dim=(2, 3), keepdim=True))
        return features * normalise_pooled(self.norm, pooled).sigmoid()


class FeatureFusion(nn.Module):
    """Both paths concatenated, mixed to `channels`, plus themselves weighted by attention."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.mix = conv_norm_relu(in_channels, channels)
        self.squeeze = nn.Conv2d(channels, channels, 1)
        self.excite = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, channels, h, w]."""
        mixed = self.mix(features)
        pooled = mixed.mean(dim=(2, 3), keepdim=True)
        return mixed + mixed * self.excite(F.relu(self.squeeze(pooled))).sigmoid()


def _spatial_step(in_channels: int, channels: int, stride: int, padding: Padding | None) -> nn.Sequential:
    """3x3 convolution, padded as the encoder pads, batch norm, ReLU."""
    layers = conv_norm_relu(in_channels, channels, stride=stride)
    if padding == "same" and stride > 1:
        from timm.layers import Conv2dSame

        layers[0] = Conv2dSame(in_channels, channels, 3, stride, bias=False)
    return layers
