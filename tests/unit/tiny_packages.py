"""Packages of small networks, for tests of what is done with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from panolib.config import to_plain
from panolib.data.intensity import STRETCHED
from panolib.labels import LABEL_SETS, NUCLEI
from panolib.study.packaged import ENTRY, PanopticNetworks, Recipe
from panolib.training.setup import build_instance, build_semantic
from panolib.training.specs import EncoderSpec, InstanceNetwork, SemanticNetwork

ENCODER = EncoderSpec("test_efficientnet", None)
SEMANTIC = SemanticNetwork("v2", ENCODER, rates=(1,))
INSTANCE = InstanceNetwork(
    encoder=ENCODER, embedding_dim=3, output_stride=2, decoder_channels=(4, 4, 4, 4)
)


def recipe(label_set: str = NUCLEI.name, stretched: bool = False, **settings) -> Recipe:
    """Settings for networks on images at their own scale, of intensities as they are or stretched."""
    common = {"format": 2, "run": "tiny", "key": "0" * 64, "width": None, "shared": False}
    common |= {"intensity": STRETCHED if stretched else None, "limits": None}
    common |= {"diameter": None, "pixel_size": None}
    common |= {"algorithm": "mean_shift_plus", "bandwidth": 0.3, "delta_dist": 0.3, "min_size": 4}
    common |= {"rule": "void", "opening": 0, "semantic": SEMANTIC, "instance": INSTANCE}
    return Recipe(label_set=LABEL_SETS[label_set], **common | settings)


def write_tiny(path: Path, label_set: str, seed: int = 0, **settings) -> Path:
    """A file of untrained networks."""
    torch.manual_seed(seed)
    parts = {"semantic": build_semantic(SEMANTIC, LABEL_SETS[label_set].n_classes, pretrained=False)}
    parts["instance"] = build_instance(INSTANCE, pretrained=False)
    tensors = {f"{part}.{name}": tensor.contiguous() for part, network in parts.items()
               for name, tensor in network.state_dict().items()}  # fmt: skip
    save_file(tensors, path, metadata={ENTRY: json.dumps(to_plain(recipe(label_set, **settings)))})
    return path


class Bright(nn.Module):
    """Pixels that are not black are nuclei; remembers the sizes that it saw."""

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.ones(1)), []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        score = 20 * (image.amax(1) + 1.5)  # of normalised colours, where black is below -1.8
        return torch.stack([-score, score], 1)


class Colour(nn.Module):
    """The embedding of a pixel is its colour."""

    def forward(self, image):
        return image


def of_colours(**settings) -> PanopticNetworks:
    """Networks that find objects of one colour on a black ground, whatever surrounds them."""
    return PanopticNetworks(recipe(**settings), Bright(), Colour())


def painted(labels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: each object of a map has a colour, far from all others; every 27th is the same."""
    levels = np.array([80, 160, 240], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    ids, index = np.unique(labels, return_inverse=True)
    table = colours[np.arange(len(ids)) % len(colours)]
    table[ids == 0] = 0
    return table[index.reshape(labels.shape)]
