"""One training step of every network in a pickle, as `setup.lay_out` lays it out: train_networks.py FILE.

For a process of its own: a layer that writes beyond its arrays ends the process, at once or a little later.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from torch import nn

from panolib.related.detr.network import DetrNetwork, build_detr
from panolib.related.realtime.adversarial import AdversarySpec
from panolib.related.realtime.discriminator import Discriminator
from panolib.training.setup import build_instance, build_semantic, lay_out, overruns_channels_last
from panolib.training.specs import Compute, InstanceNetwork

N_CLASSES = 5
COMPUTE = Compute("cpu", "32-true", 0, channels_last=True)


def build(network) -> nn.Module:
    """A network whose weights are not read, whatever its settings name."""
    if isinstance(network, DetrNetwork):
        return build_detr(network, N_CLASSES, pretrained=False)
    if isinstance(network, AdversarySpec):
        return Discriminator(N_CLASSES, kind=network.kind, width=network.width)
    if isinstance(network, InstanceNetwork):
        return build_instance(network, pretrained=False)
    return build_semantic(network, N_CLASSES, pretrained=False)


def total(outputs) -> torch.Tensor:
    """One number that depends on all outputs."""
    if isinstance(outputs, torch.Tensor):
        return outputs.square().mean()
    if not isinstance(outputs, (tuple, list)):
        outputs = (outputs.logits, outputs.pred_masks)
    return sum(map(total, outputs))


def step(network) -> None:
    """Forward, backward and update; a network with a dangerous layer gets images of both layouts."""
    torch.manual_seed(0)
    model = lay_out(build(network), COMPUTE).train()
    # a map of 64 x 128 is where the damage was found; networks without such a layer can do with less
    risky = any(map(overruns_channels_last, model.modules()))
    channels = N_CLASSES if isinstance(network, AdversarySpec) else 3
    image = torch.randn(2, channels, *((128, 256) if risky else (64, 64)))
    for layout in (torch.channels_last, torch.contiguous_format)[0 if risky else 1 :]:
        total(model(image.contiguous(memory_format=layout))).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert all(value.isfinite().all() for value in model.state_dict().values()), network


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in pickle.loads(Path(sys.argv[1]).read_bytes()):
        step(chosen)
    print("done")
