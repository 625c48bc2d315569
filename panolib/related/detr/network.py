"""DETR with a mask head, as Hugging Face's transformers has it, from plain settings and from scratch.

References: Carion et al. 2020, arXiv:2005.12872.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from panolib.config import Count, NonNegative, Positive, Share, spec
from panolib.errors import UserError

if TYPE_CHECKING:
    from transformers import DetrForSegmentation

N_FEATURES = 4  # maps that the mask head reads: the encoder's, and three finer ones
HEAD_CHANNELS = 16  # the mask head ends with d_model / 16 channels


class MissingTransformers(UserError, ImportError):
    """The optional package with DETR is not installed."""


@spec
class DetrNetwork:
    """Sizes of the network; values not in the slides are DETR's.

    `depths` are the blocks of each stage of a ResNet. Its last map feeds the transformer: with four stages
    that is 1/32 of the image, with three (and the stem as the finest map) 1/16, for small images.

    The attention maps of a query sum to 1 over all heads and cells, so each value is tiny beside the features
    that the mask head sees with them, and masks begin alike for all queries. A gain of heads x cells makes
    their mean 1, which short trainings need.
    """

    block: Literal["basic", "bottleneck"]
    stem_channels: Count
    channels: tuple[Count, ...]  # of every stage
    depths: tuple[Count, ...]
    d_model: Count
    heads: Count
    encoder_layers: Count
    decoder_layers: Count
    feed_forward: Count
    n_queries: Count
    dropout: Share
    no_object_weight: NonNegative  # in the cross-entropy of the class head
    attention_gain: Positive  # of the mask head's start weights for attention maps; 1: as the reference
    trained_norms: bool  # batch norm learns; False: frozen, as DETR does with pre-trained weights

    def __post_init__(self):
        if len(self.channels) != len(self.depths) or len(self.depths) < N_FEATURES - 1:
            raise ValueError(
                f"channels {self.channels} and depths {self.depths}: expected as many of both, at least 3"
            )
        if self.d_model % HEAD_CHANNELS or self.d_model % self.heads or (self.d_model + self.heads) % 8:
            raise ValueError(
                f"d_model is {self.d_model} with {self.heads} heads; expected a multiple of 16 and of the "
                "heads, and the sum of both a multiple of 8"
            )


def build_detr(network: DetrNetwork, n_classes: int) -> DetrForSegmentation:
    """The network with random weights. Nothing is downloaded.

    Images are float [B, 3, H, W], normalised as everywhere here. Its output has `logits` [B, Q, C + 1] (the
    last class is "no object"), `pred_boxes` [B, Q, 4] (centre x, centre y, width, height; shares of the
    image) and `pred_masks` [B, Q, h, w] (logits at 1/4). With `labels` (`targets.detr_target`) it matches
    queries to segments and has `loss` and `loss_dict`.

    Raises
    ------
    MissingTransformers
        Says how to install the package.
    """
    try:
        from transformers import DetrConfig, DetrForSegmentation, ResNetConfig
    except ImportError as error:
        raise MissingTransformers(
            "DETR needs the package transformers: pip install 'panolib[detr]'; recorded runs are replayed "
            "without it"
        ) from error
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
