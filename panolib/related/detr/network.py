"""The network with queries, Mask2Former as Hugging Face's transformers has it, from plain settings.

References: Carion et al. 2020, arXiv:2005.12872 (DETR); Cheng et al. 2022, arXiv:2112.01527.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from panolib.config import Count, NonNegative, spec
from panolib.errors import UserError
from panolib.models.encoder import ENCODER_STRIDES, Encoder, check_encoder
from panolib.training.specs import EncoderSpec

if TYPE_CHECKING:
    from panolib.related.detr.mask2former import Mask2Former

NORM_GROUPS = 32  # of its group norms
ENCODER = "network.model.pixel_level_module.encoder."  # how the names of the encoder's parameters begin


class MissingTransformers(UserError, ImportError):
    """The optional package with the network is not installed."""


@spec(kw_only=True)
class DetrNetwork:
    """Sizes of the network on an `encoder`."""

    encoder: EncoderSpec
    output_stride: Literal[ENCODER_STRIDES]  # of the encoder
    d_model: Count
    heads: Count
    encoder_layers: Count
    decoder_layers: Count
    feed_forward: Count
    n_queries: Count
    n_points: Count  # of each mask, drawn anew for every loss
    no_object_weight: NonNegative  # in the cross-entropy of the class head

    def __post_init__(self):
        check_encoder(self.encoder.name, self.output_stride, self.encoder.frozen, self.encoder.weights)
        if self.d_model % NORM_GROUPS or self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} with {self.heads} heads; expected a multiple of {NORM_GROUPS} "
                "and of the heads"
            )


def build_detr(network: DetrNetwork, n_classes: int, *, pretrained: bool = True) -> Mask2Former:
    """The network; its encoder with its weights, all else random. `pretrained` False leaves them unread.

    Images are float [B, 3, H, W], normalised as everywhere here. Its output has `logits` [B, Q, C + 1] (the
    last class is "no object") and `pred_masks` [B, Q, h, w] (logits at 1/4). With `labels`
    (`targets.detr_target`) it matches queries to segments and has `loss` and `loss_dict`.

    Raises
    ------
    MissingTransformers
        Says how to install the package.
    WeightsError
        For an encoder's weights that do not exist or cannot be had.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingTransformers(
            "DETR needs the package transformers: pip install 'panolib[detr]'; recorded runs are replayed "
            "without it"
        ) from error
    from panolib.related.detr.mask2former import CONFIGURED, Mask2Former

    chosen = network.encoder
    encoder = Encoder(
        chosen.name, output_stride=network.output_stride, frozen=chosen.frozen, weights=chosen.weights,
        load=pretrained,
    )  # fmt: skip
    sizes = {name: getattr(network, name) for name in CONFIGURED}
    return Mask2Former(encoder, n_classes, decoder_layers=network.decoder_layers, **sizes)
