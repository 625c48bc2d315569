"""Mask2Former, as Hugging Face's transformers has it, on an encoder of ours.

References: Cheng et al. 2022, arXiv:2112.01527.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

from panolib.models.encoder import Encoder

CONFIGURED = {  # transformers' names of what a user may choose
    "d_model": ("hidden_dim", "feature_size", "mask_feature_size"),
    "feed_forward": ("dim_feedforward", "encoder_feedforward_dim"),
    "heads": ("num_attention_heads",),
    "encoder_layers": ("encoder_layers",),
    "n_queries": ("num_queries",),
    "no_object_weight": ("no_object_weight",),
    "n_points": ("train_num_points",),
}


class OnResNet(Mask2FormerConfig):
    """The library's configuration, which warns of every backbone but Swin."""

    backbones_supported = ("resnet",)


@dataclass
class MaskOutputs:
    """Class logits [B, Q, C + 1] and mask logits [B, Q, h, w] of queries; with labels also the loss.

    `loss_dict` holds the weighted terms of the last layer, and those of earlier ones with "_0", "_1", ...
    """

    logits: Tensor
    pred_masks: Tensor
    loss: Tensor | None = None
    loss_dict: Mapping[str, Tensor] = field(default_factory=dict)


class Mask2Former(nn.Module):
    """DETR's queries with masks as products of query and pixel embeddings, and attention inside these masks.

    The encoder's maps from stride 4 on are read; masks are predicted at stride 4. Each decoder layer has a
    loss of its own, as have the queries before the first one. `sizes` by the names in `CONFIGURED`.
    """

    def __init__(self, encoder: Encoder, n_classes: int, *, decoder_layers: int, **sizes):
        super().__init__()
        channels, strides = encoder.channels[1:], encoder.strides[1:]
        # The library makes an encoder from a configuration, of which its decoder takes the channels; the
        # smallest one of these channels is made, and ours takes its place.
        smallest = ResNetConfig(
            embedding_size=8,
            hidden_sizes=channels,
            depths=[1] * len(channels),
            layer_type="basic",
            out_features=[f"stage{i + 1}" for i in range(len(channels))],
        )
        config = OnResNet(
            backbone_config=smallest,
            num_labels=n_classes,
            feature_strides=strides,
            common_stride=strides[0],
            decoder_layers=decoder_layers + 1,  # the library counts the queries before the first layer as one
            dropout=0.0,  # the library would skip whole layers as often
            **{name: value for ours, value in sizes.items() for name in CONFIGURED[ours]},
        )
        self.network = Mask2FormerForUniversalSegmentation(config)
        self.network.model.pixel_level_module.encoder = _FeatureMaps(encoder)

    @property
    def encoder(self) -> Encoder:
        """The encoder that it was given."""
        return self.network.model.pixel_level_module.encoder.encoder

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None) -> MaskOutputs:
        """Of images [B, 3, H, W]; with the loss if there are labels (`targets.detr_target`)."""
        found = self.network(pixel_values=pixel_values, output_auxiliary_logits=True)
        outputs = MaskOutputs(found.class_queries_logits, found.masks_queries_logits)
        if labels is None:
            return outputs
        targets = ([label[name] for label in labels] for name in ("masks", "class_labels"))
        terms = self.network.get_loss_dict(
            outputs.pred_masks, outputs.logits, *targets, found.auxiliary_logits
        )
        outputs.loss = self.network.get_loss(terms)
        outputs.loss_dict = {name.replace("cross_entropy", "ce"): value for name, value in terms.items()}
        return outputs


class _FeatureMaps(nn.Module):
    """The encoder behind the interface that the library expects of one."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.encoder(pixel_values)[1:])
