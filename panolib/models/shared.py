"""One encoder, two heads: class logits and embeddings of the same feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from panolib.models.deeplab import DeepLab
from panolib.models.unet import EmbeddingUNet


class SharedNetwork(nn.Module):
    """A DeepLab and an embedding U-Net on one encoder, which sees an image once for both.

    Each of them is a network in its own right, with the encoder in it: whatever takes a semantic or an
    embedding network takes `semantic` or `instance`. In the state dict the encoder has both their names.
    Raises ValueError for two encoders, or a network whose decoder wants more than the feature maps, such as
    coordinates. Saha et al. 2023, arXiv:2304.14291 (EDAPS: a shared encoder adapts better than one for each
    task).
    """

    def __init__(self, semantic: DeepLab, instance: EmbeddingUNet):
        super().__init__()
        if semantic.encoder is not instance.encoder:
            raise ValueError("the networks have an encoder each, expected one that both share")
        if not hasattr(semantic, "decode") or instance.coordinates:
            raise ValueError("expected a DeepLab, and an embedding network without coordinates in its input")
        self.semantic, self.instance = semantic, instance

    @property
    def encoder(self) -> nn.Module:
        return self.semantic.encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of `image` [B, 3, H, W], as the two networks give them."""
        features = self.encoder(image)
        return self.semantic.decode(features), self.instance.decode(features, image.shape[-2:])
