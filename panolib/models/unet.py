"""The embedding U-Net of the instance branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panolib.models.coordinates import add_coordinates, append_coordinates
from panolib.models.encoder import Encoder
from panolib.models.geometry import Alignment, Placement, enlarge
from panolib.models.layers import conv_norm_relu


class EmbeddingUNet(nn.Module):
    """U-Net decoder on an encoder; one embedding per pixel, without activation.

    Where embeddings sit: at output stride 1 on their pixel. At stride 2 cell j is centred on pixel 2 j, where
    the stem's convolution and its skip connection centre it. Training takes the labels of pixel 2 j + 1, and
    an instance is painted on pixels 2 j and 2 j + 1: half a pixel between what is learned and what is
    painted, one between the label and the skip, which the decoder's 3x3 convolutions see. Inside the decoder
    "cell_centre" puts each coarser map beside the skip it meets, by half the skip's stride: 1, 2, 4 and 8
    pixels from stride 4, 8, 16 and 32, in sum 15. "receptive_field" puts it where its layers centred it. With
    an encoder of "same" padding cell j of an even size is centred on pixel 2 j + 1, where its label is taken.

    Parameters
    ----------
    encoder : Encoder
        Its five maps are the skip connections.
    embedding_dim : int
        Channels of the embedding.
    decoder_channels : sequence of int
        Widths of the decoder blocks, deepest first: four blocks reach the stem's grid, a fifth the image's.
    output_stride : {1, 2}
        1 gives one embedding per image pixel; 2 stops one block earlier, on the stem's grid.
    coordinates : bool
        Append the pixel's x and y, each in [-1, 1], to the image; `in_channels` of the encoder counts them.
    coordinate_length : float, optional
        Add the x and y of the embedding's pixel, over this length in pixels of the embedding grid, to the
        first two channels of the embedding (`coordinates.add_coordinates`).
    alignment : {"cell_centre", "receptive_field", "corners"}
        Where the cells of a coarser map are taken to sit when it is upsampled.
    input_width : int, optional
        Width, pixels, at which the network is trained to see whole images: evaluation resizes them to it
        (`inference.embed_images`).

    Raises ValueError for another output stride or alignment, too few `decoder_channels`, or no channels for
    coordinates. Thesis section 6.2; Ronneberger et al. 2015, arXiv:1505.04597; Novotny et al. 2018,
    arXiv:1807.10712.
    """

    def __init__(
        self,
        encoder: Encoder,
        embedding_dim: int = 8,
        *,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        output_stride: int = 1,
        coordinates: bool = False,
        coordinate_length: float | None = None,
        alignment: Alignment = "cell_centre",
        input_width: int | None = None,
    ):
        super().__init__()
        if output_stride not in (1, 2):
            raise ValueError(f"EmbeddingUNet output_stride is {output_stride!r}, expected 1 or 2")
        skip_channels = encoder.channels[-2::-1]            # of a ResNet: layer3, layer2, layer1, stem
        if output_stride == 1:
            skip_channels = [*skip_channels, 0]             # on the image's own grid there is no skip
        if len(decoder_channels) < len(skip_channels):
            raise ValueError(
                f"decoder_channels is {tuple(decoder_channels)}, expected {len(skip_channels)} widths "
                f"for output_stride {output_stride}"
            )
        if coordinate_length is not None and (embedding_dim < 2 or not coordinate_length > 0):
            raise ValueError(
                f"coordinate_length is {coordinate_length} and embedding_dim {embedding_dim}, expected a "
                "length > 0 and 2 channels or more"
            )
        self.encoder, self.output_stride, self.coordinates = encoder, output_stride, coordinates
        self.alignment = Placement(alignment, padding=encoder.padding).alignment
        self.input_width, self.coordinate_length = input_width, coordinate_length
        self.blocks = nn.ModuleList()
        channels = encoder.channels[-1]
        for skip, width in zip(skip_channels, decoder_channels):
            self.blocks.append(
                nn.Sequential(*conv_norm_relu(channels + skip, width), *conv_norm_relu(width, width))
            )
            channels = width
        self.embed = nn.Conv2d(channels, embedding_dim, 1)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings [B, E, h, w] of `image` [B, C, H, W]; h = ceil(H / output_stride). Any H and W will do.

        Raises ValueError if the image's channels, with the coordinates, are not the encoder's `in_channels`.
        """
        inputs = append_coordinates(image) if self.coordinates else image
        if inputs.shape[1] != self.encoder.in_channels:
            raise ValueError(
                f"the encoder has in_channels={self.encoder.in_channels}, found an image of {image.shape[1]} "
                f"channels and {inputs.shape[1] - image.shape[1]} coordinates"
            )
        return self.decode(self.encoder(inputs), image.shape[-2:])

    def decode(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Tensor:
        """Embeddings of the encoder's feature maps of an image of that height and width."""
        skips = [*features[-2::-1], None]                   # None: the image's own grid
        hidden = features[-1]
        for block, skip in zip(self.blocks, skips):
            size = tuple(image_size) if skip is None else skip.shape[-2:]
            if hidden.shape[-2:] != size:  # half of it, where the encoder has a stride
                hidden = enlarge(hidden, size, self.alignment, 2, self.encoder.padding)
            hidden = block(hidden if skip is None else torch.cat([hidden, skip], dim=1))
        offsets = self.embed(hidden)
        if self.coordinate_length is None:
            return offsets
        return add_coordinates(offsets, self.coordinate_length)
