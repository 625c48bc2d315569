"""Convolutions in channels-last: no network of any profile may damage memory on any processor."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from panolib.load import load
from panolib.profiles import profile_names, project_root
from panolib.related.detr.network import DetrNetwork
from panolib.related.realtime.adversarial import AdversarySpec
from panolib.training.setup import lay_out, memory_format, overruns_channels_last
from panolib.training.specs import Compute, EncoderSpec, InstanceNetwork, SemanticNetwork

PROFILES = profile_names()
NETWORKS = (SemanticNetwork, InstanceNetwork, DetrNetwork, AdversarySpec)
CHANNELS_LAST = Compute("cpu", "32-true", 0, channels_last=True)


def networks_of(value) -> Iterator:
    """Settings of networks anywhere in the spec of a run."""
    if isinstance(value, NETWORKS):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from networks_of(vars(value))
    elif isinstance(value, Mapping):
        yield from networks_of(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from networks_of(part)


def structure(network) -> object:
    """The settings without what does not make a layer of another kind."""
    neutral = {"weights": None, "lr": 1.0, "weight": 0.0, "source_label": 0, "alignment": "receptive_field"}
    neutral |= {"coordinate_length": 6.0, "rates": tuple(range(1, 1 + len(getattr(network, "rates", ()))))}
    if encoder := getattr(network, "encoder", None):
        name = {"resnet101": "resnet50"}.get(encoder.name, encoder.name)  # 101 has more of the same blocks
        neutral["encoder"] = dataclasses.replace(encoder, name=name, weights=None)
    given = {field.name for field in dataclasses.fields(network) if getattr(network, field.name) is not None}
    return dataclasses.replace(network, **{name: value for name, value in neutral.items() if name in given})


def encoded() -> list:
    """The decoders on the encoders of the cpu and the smoke profile."""
    networks = []
    for name in ("tf_efficientnet_lite0", "test_efficientnet"):
        own = {"encoder": EncoderSpec(name, None, 2)}
        networks += [SemanticNetwork("v3+", rates=(1, 2), head_channels=16, **own)]
        networks += [SemanticNetwork("bisenet", output_stride=32, **own)]
        networks += [
            InstanceNetwork(
                embedding_dim=8, decoder_channels=(32, 24, 16, 8), output_stride=2, coordinates="none", **own
            )
        ]
    return networks


@pytest.fixture(scope="module")
def every_network() -> list:
    """Every different network that a run of any profile builds, and one of each kind on timm's encoders."""
    found = encoded()
    found += [
        structure(network)
        for profile in PROFILES
        for run in load(profile, train=False).runs.values()
        for network in networks_of(run.spec)
    ]
    assert {type(network) for network in found} == set(NETWORKS)
    return list(dict.fromkeys(found))


def train_in_a_process(networks: list, folder: Path, **environment: str) -> None:
    """One step of each network in one new process, which must survive it."""
    (folder / "networks.pickle").write_bytes(pickle.dumps(networks))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_networks.py"), folder / "networks.pickle"],
        env=os.environ | {"PYTHONPATH": str(project_root())} | environment,
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_every_network_of_every_profile_trains(every_network, tmp_path):
    train_in_a_process(every_network, tmp_path)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the test above is as well")
def test_thin_networks_train_with_the_first_avx512(every_network, tmp_path):
    """What a later processor also offers is left out."""
    thin = [network for network in every_network if (getattr(network, "width", None) or 64) < 64]
    thin += [network for network in every_network if getattr(network, "encoder", None)]
    train_in_a_process(thin, tmp_path, ONEDNN_MAX_CPU_ISA="AVX512_CORE")


def a_network(channels: int, **options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 32, **options))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (a_network(8, kernel_size=1, stride=2), torch.contiguous_format),
        (a_network(15, kernel_size=1, stride=(1, 3)), torch.contiguous_format),
        (a_network(16, kernel_size=1, stride=2), torch.channels_last),
        (a_network(8, kernel_size=1), torch.channels_last),
        (a_network(8, kernel_size=3, stride=2), torch.channels_last),
    ],
)
def test_the_layers_decide_on_the_layout(network, expected):
    assert memory_format(CHANNELS_LAST, network) == expected
    assert memory_format(dataclasses.replace(CHANNELS_LAST, channels_last=False), network) == (
        torch.contiguous_format
    )
    assert lay_out(network, CHANNELS_LAST)[0].weight.is_contiguous(memory_format=expected)


def test_a_dangerous_layer_gets_contiguous_input_in_the_copy_of_a_network_too():
    network = copy.deepcopy(lay_out(a_network(8, kernel_size=1, stride=2), CHANNELS_LAST))
    assert [overruns_channels_last(layer) for layer in network] == [False, True]
    seen = []
    network[1].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].is_contiguous()))
    network(torch.zeros(2, 3, 10, 20).contiguous(memory_format=torch.channels_last))
    assert seen == [True]
