"""The network with queries, as Hugging Face's transformers has it, from plain settings.

Either DETR with a mask head on a thin ResNet, from scratch; or Mask2Former on an encoder of ours, which comes
with ImageNet weights.

References: Carion et al. 2020, arXiv:2005.12872; Cheng et al. 2022, arXiv:2112.01527.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from panolib.config import Count, NonNegative, Positive, Share, later, spec
from panolib.errors import UserError
from panolib.models.encoder import ENCODER_STRIDES, Encoder, check_encoder
from panolib.training.specs import EncoderSpec

if TYPE_CHECKING:
    from transformers import DetrForSegmentation

    from panolib.related.detr.mask2former import Mask2Former

N_FEATURES = 4  # maps that the mask head reads: the encoder's, and three finer ones
HEAD_CHANNELS = 16  # the mask head ends with d_model / 16 channels
NORM_GROUPS = 32  # of Mask2Former's group norms
OF_DETR = ("block", "stem_channels", "channels", "depths", "dropout", "attention_gain", "trained_norms")
OF_MASK2FORMER = ("output_stride", "n_points")
# how the names of the encoder's parameters begin, in either network
ENCODERS = ("detr.model.backbone.", "network.model.pixel_level_module.encoder.")


class MissingTransformers(UserError, ImportError):
    """The optional package with DETR is not installed."""


@spec(kw_only=True)
class DetrNetwork:
    """Sizes of the network; values not in the slides are DETR's. With an `encoder` it is Mask2Former.

    DETR: `depths` are the blocks of each stage of a ResNet. Its last map feeds the transformer: with four
    stages that is 1/32 of the image, with three (and the stem as the finest map) 1/16, for small images.

    The attention maps of a query sum to 1 over all heads and cells, so each value is tiny beside the features
    that the mask head sees with them, and masks begin alike for all queries. A gain of heads x cells makes
    their mean 1, which short trainings need; the reference has 1.
    """

    d_model: Count
    heads: Count
    encoder_layers: Count
    decoder_layers: Count
    feed_forward: Count
    n_queries: Count
    no_object_weight: NonNegative  # in the cross-entropy of the class head

    block: Literal["basic", "bottleneck"] | None = later(None)
    stem_channels: Count | None = later(None)
    channels: tuple[Count, ...] | None = later(None)  # of every stage
    depths: tuple[Count, ...] | None = later(None)
    dropout: Share | None = later(None)
    attention_gain: Positive | None = later(None)  # of the mask head's start weights for attention maps
    trained_norms: bool | None = later(None)  # batch norm learns; False: frozen, as DETR's own

    encoder: EncoderSpec | None = later(None)
    output_stride: Literal[ENCODER_STRIDES] | None = later(None)  # of the encoder
    n_points: Count | None = later(None)  # of each mask, drawn anew for every loss

    def __post_init__(self):
        wanted, other = (OF_MASK2FORMER, OF_DETR) if self.encoder else (OF_DETR, OF_MASK2FORMER)
        missing = [name for name in wanted if getattr(self, name) is None]
        given = [name for name in other if getattr(self, name) is not None]
        if missing or given:
            raise ValueError(
                f"{(missing + given)[0]}: {'missing key' if missing else 'unexpected key'}, expected "
                f"{', '.join(wanted)} {'beside an encoder' if self.encoder else 'of a ResNet, or an encoder'}"
            )
        if self.encoder is None:
            self._check_detr()
            return
        check_encoder(self.encoder.name, self.output_stride, self.encoder.frozen, self.encoder.weights)
        if self.d_model % NORM_GROUPS or self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} with {self.heads} heads; expected a multiple of {NORM_GROUPS} "
                "and of the heads"
            )

    def _check_detr(self):
        if len(self.channels) != len(self.depths) or len(self.depths) < N_FEATURES - 1:
            raise ValueError(
                f"channels {self.channels} and depths {self.depths}: expected as many of both, at least 3"
            )
        if self.d_model % HEAD_CHANNELS or self.d_model % self.heads or (self.d_model + self.heads) % 8:
            raise ValueError(
                f"d_model is {self.d_model} with {self.heads} heads; expected a multiple of 16 and of the "
                "heads, and the sum of both a multiple of 8"
            )


def build_detr(
    network: DetrNetwork, n_classes: int, *, pretrained: bool = True
) -> DetrForSegmentation | Mask2Former:
    """The network; its encoder with its weights, all else random. `pretrained` False leaves them unread.

    Images are float [B, 3, H, W], normalised as everywhere here. Its output has `logits` [B, Q, C + 1] (the
    last class is "no object") and `pred_masks` [B, Q, h, w] (logits at 1/4), of DETR also `pred_boxes`
    [B, Q, 4] (centre x, centre y, width, height; shares of the image). With `labels` (`targets.detr_target`)
    it matches queries to segments and has `loss` and `loss_dict`.

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
    if network.encoder is not None:
        return _build_mask2former(network, n_classes, pretrained)
    return _build_from_scratch(network, n_classes)


def _build_mask2former(network: DetrNetwork, n_classes: int, pretrained: bool) -> Mask2Former:
    from panolib.related.detr.mask2former import CONFIGURED, Mask2Former

    chosen = network.encoder
    encoder = Encoder(
        chosen.name, output_stride=network.output_stride, frozen=chosen.frozen, weights=chosen.weights,
        load=pretrained,
    )  # fmt: skip
    sizes = {name: getattr(network, name) for name in CONFIGURED}
    return Mask2Former(encoder, n_classes, decoder_layers=network.decoder_layers, **sizes)


def _build_from_scratch(network: DetrNetwork, n_classes: int) -> DetrForSegmentation:
    from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

    stages = ["stem", *(f"stage{i + 1}" for i in range(len(network.depths)))]
    backbone = ResNetConfig(
        embedding_size=network.stem_channels,
        hidden_sizes=list(network.channels),
        depths=list(network.depths),
        layer_type=network.block,
        out_features=stages[-N_FEATURES:],
    )
    config = DetrConfig(
        backbone_config=backbone,
        num_labels=n_classes,
        num_queries=network.n_queries,
        d_model=network.d_model,
        encoder_layers=network.encoder_layers,
        decoder_layers=network.decoder_layers,
        encoder_attention_heads=network.heads,
        decoder_attention_heads=network.heads,
        encoder_ffn_dim=network.feed_forward,
        decoder_ffn_dim=network.feed_forward,
        dropout=network.dropout,
        eos_coefficient=network.no_object_weight,
        auxiliary_loss=True,
    )
    model = DetrForSegmentation(config)
    # The library freezes the backbone, or parts of it, and its norms: meant for pre-trained weights. From
    # scratch that would leave random filters without any normalisation.
    model.detr.model.unfreeze_backbone()
    if network.trained_norms:
        _train_norms(model.detr.model.backbone)
    _start_as_reference(model)
    with torch.no_grad():
        model.mask_head.conv1.conv.weight[:, network.d_model :] *= network.attention_gain
    return model


def _start_as_reference(model: DetrForSegmentation) -> None:
    """Random start of transformer and heads as in the reference code of DETR, made for training from scratch.

    The library draws every weight and query with a deviation of 0.02, whatever the width: all queries then
    begin alike, and next to nothing of the image reaches them.
    """
    detr = model.detr.model
    for module in (detr.encoder, detr.decoder):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    heads = (model.detr.class_labels_classifier, *model.detr.bbox_predictor.layers)
    for layer in (detr.input_projection, detr.query_position_embeddings, *heads):
        layer.reset_parameters()
    # Unlike there: the decoder begins with queries of 0, so its first layer norm would see exactly 0, where
    # its slope is 300. That one bias makes most of the gradient's norm, and clipping takes it from the rest.
    nn.init.normal_(detr.decoder.layers[0].self_attn.o_proj.bias)


def _train_norms(module: nn.Module) -> None:
    """Replace every frozen batch norm below `module` by one that learns."""
    for name, child in module.named_children():
        if type(child).__name__ == "DetrFrozenBatchNorm2d":
            setattr(module, name, nn.BatchNorm2d(len(child.weight)))
        else:
            _train_norms(child)
