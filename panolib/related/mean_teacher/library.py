"""torch-em, an optional package: found when something is trained or scored, never to replay a record.

References: Archit & Pape 2023, arXiv:2303.11747 (its domain adaptation); Ronneberger et al. 2015,
arXiv:1505.04597 (its network).
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
from torch import nn

from panolib.config import Count, spec
from panolib.data.samples import Sample
from panolib.errors import UserError

PARTS = (
    "data", "loss", "model", "self_training", "trainer", "transform", "util.prediction", "util.segmentation",
)  # fmt: skip
CHANNELS = ("foreground", "boundary")  # what the network predicts, in the order of torch-em's targets


class MissingTorchEm(UserError, ImportError):
    """The optional package with the peer is not installed."""


@spec
class PeerNetwork:
    """Sizes of torch-em's U-Net; its defaults are a depth of 4 and 32 features, doubled at every level."""

    depth: Count
    features: Count


def torch_em() -> ModuleType:
    """The package with all parts that are used here. Raises MissingTorchEm, which says how to install it."""
    try:
        for part in PARTS:
            importlib.import_module(f"torch_em.{part}")
    except ImportError as error:
        raise MissingTorchEm(
            "the peer needs the package torch_em: pip install 'panolib[peers]'; recorded runs are replayed "
            f"without it ({error})"
        ) from error
    return importlib.import_module("torch_em")


def build_peer(network: PeerNetwork) -> nn.Module:
    """torch-em's U-Net: float [B, 1, H, W] -> probabilities [B, 2, H, W] of `CHANNELS`.

    Height and width are multiples of 2^depth. It has instance norms, so no statistics of its own.
    """
    return torch_em().model.UNet2d(
        in_channels=1,
        out_channels=len(CHANNELS),
        depth=network.depth,
        initial_features=network.features,
        final_activation="Sigmoid",
    )


def grey(sample: Sample) -> np.ndarray:
    """float32 [H, W], 0 .. 255: mean of the channels."""
    return sample.image.mean(-1, dtype=np.float32)
