"""BiSeNet: a shallow path that keeps detail, an encoder that gathers context, and their fusion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panolib.models.deeplab import normalise_pooled
from panolib.models.encoder import Encoder
from panolib.models.geometry import Alignment, Padding, Placement, enlarge


class BiSeNet(nn.Module):
    """Real-time semantic segmentation network; the caller upsamples its logits.

    The context path gives the last two maps of the encoder, the spatial path a map of half the stride of the
    coarser but one: 1/8 beside 1/16 and 1/32.

    The reference upsamples before its last 1x1 convolution and before those of the auxiliary heads. Both are
    linear maps, one over channels and one over places, so their order does not matter; here the convolution
    comes first, on fewer pixels.

    Parameters
    ----------
    encoder : Encoder
        ResNet-18 or ResNet-101 with output stride 32 in the sources. The spatial path is as wide as the
        encoder's first map, and 2 and 4 times that, and pads as the encoder does: both see the same places.
    n_classes : int
        Channels of the logits, and of the fused features (256 in the original BiSeNet).
    alignment : {"cell_centre", "receptive_field", "corners"}
        Where cells are taken to sit when a map is upsampled; the reference: "cell_centre".

    Attributes
    ----------
    output_stride : int
        Stride of all logits.
    placement : Placement
        Of all logits, for `geometry.upsample_to`.

    References
    ----------
    Yu et al. 2018, arXiv:1808.00897.
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
            *(
                _conv_norm_relu(channels[i], channels[i + 1], stride=step, padding=encoder.padding)
                for i, step in enumerate(steps)
            )
        )
        self.attention_fine = AttentionRefinement(fine)
        self.attention_coarse = AttentionRefinement(coarse)
        self.fusion = FeatureFusion(channels[-1] + fine + coarse, n_classes)
        self.classifier = nn.Conv2d(n_classes, n_classes, 1)
        self.auxiliary_fine = nn.Conv2d(fine, n_classes, 1)
        self.auxiliary_coarse = nn.Conv2d(coarse, n_classes, 1)
        for name, module in self.named_children():
            for layer in module.modules():
                if name != "encoder" and isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

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
        context = [
            enlarge(fine, size, alignment, fine_ratio, padding),
            enlarge(coarse, size, alignment, coarse_ratio, padding),
        ]
        logits = self.classifier(self.fusion(torch.cat([spatial, *context], dim=1)))
        if not every_head:
            return logits
        return (
            logits,
            enlarge(self.auxiliary_fine(fine), size, alignment, fine_ratio, padding),
            enlarge(self.auxiliary_coarse(coarse), size, alignment, coarse_ratio, padding),
        )


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
        self.mix = _conv_norm_relu(in_channels, channels)
        self.squeeze = nn.Conv2d(channels, channels, 1)
        self.excite = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, channels, h, w]."""
        mixed = self.mix(features)
        pooled = mixed.mean(dim=(2, 3), keepdim=True)
        return mixed + mixed * self.excite(F.relu(self.squeeze(pooled))).sigmoid()


def _conv_norm_relu(
    in_channels: int, channels: int, *, stride: int = 1, padding: Padding | None = "symmetric"
) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    if padding == "same" and stride > 1:
        from timm.layers import Conv2dSame

        convolution = Conv2dSame(in_channels, channels, 3, stride, bias=False)
    return nn.Sequential(
        convolution,
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
