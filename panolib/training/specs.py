"""The parts of what a run is told (`run_specs`): device, networks, optimiser, augmentation, margins.

Frozen classes of plain values, read from a profile and recorded with the run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from panolib.clustering.seeds import N_EXTRA
from panolib.config import (
    Count,
    Natural,
    NonNegative,
    NonNegativePair,
    Positive,
    PositivePair,
    Share,
    later,
    respelt,
    spec,
)
from panolib.models.encoder import ENCODER_STRIDES, Geometry, check_encoder, check_geometry
from panolib.models.geometry import Alignment

StudentOrTeacher = Literal["student", "teacher"]  # network of a self-trained run; others have one


@spec
class Compute:
    """Where and how a run computes.

    `accelerator` and `precision` are Lightning Fabric's words ("cpu", "cuda", "auto"; "32-true",
    "bf16-mixed"). `loader_workers` = 0 loads in the training process.

    `devices`, `num_nodes` and `strategy` are Fabric's, too: of a run of the ladder, whose batches its
    processes share (`training.ranks`). `batch_size` is that of all of them.
    """

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"]
    precision: Literal[
        "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true",
        "transformer-engine", "transformer-engine-float16",
    ]  # fmt: skip
    loader_workers: Natural
    channels_last: bool
    devices: Count = later(1)  # of each node
    num_nodes: Count = later(1)
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = later("auto")

    @property
    def n_processes(self) -> int:
        """Processes that train one run."""
        return self.devices * self.num_nodes


@spec
class EncoderSpec:
    """An encoder of timm's (`models.encoder.Encoder`).

    `weights`: "imagenet" (timm's, downloaded), "package" (installed with the project), for a ResNet the name
    of torchvision's (downloaded), a file, or None for from scratch. `frozen` stages do not learn: 1 the stem,
    2 the stem and the first stage, ...
    """

    name: str
    weights: str | None
    frozen: Natural = 0


@spec
class SemanticNetwork:
    """A network of a `version` on an `encoder`.

    `alignment` says where the cells of maps sit when they are upsampled, in training and evaluation
    (`models.geometry`). SAC's checkpoints want geometry "sac" and alignment "corners".
    """

    version: Literal["v2", "v3", "v3+", "bisenet"]  # of DeepLab, or "bisenet", which has no rates
    encoder: EncoderSpec
    output_stride: Literal[ENCODER_STRIDES] = 16  # of the encoder
    rates: tuple[Count, ...] = ()
    head_channels: Count = later(256)  # of V3 and V3+
    alignment: Alignment = later("cell_centre")
    geometry: Geometry = later("torchvision")  # of a ResNet

    def __post_init__(self):
        if self.version != "bisenet" and not self.rates:
            raise ValueError(f"rates: expected one or more for DeepLab {self.version}, found none")
        encoder = self.encoder
        check_geometry(encoder.name, self.geometry)
        check_encoder(encoder.name, self.output_stride, encoder.frozen, encoder.weights)


@spec(kw_only=True)
class InstanceNetwork:
    """The embedding U-Net on an `encoder`.

    `coordinates`: "input" appends x and y to the image, "embedding" adds them, over `coordinate_length`
    pixels of the embedding grid, to the embedding (`models.coordinates`). False is "none", True is "input".
    """

    encoder: EncoderSpec
    embedding_dim: Count
    decoder_channels: tuple[Count, ...]
    output_stride: Literal[1, 2]
    coordinates: bool | Literal["none", "input", "embedding"] = respelt(False, {"none": False, "input": True})
    alignment: Alignment = later("cell_centre")  # of the maps inside the decoder
    input_width: Count | None = later(None)  # pixels to which whole images are resized; None: as they are
    coordinate_length: Positive | None = later(None)
    # "learned": two more channels and another loss, without `weights` and `margins`; of baselines only
    bandwidth: Literal["chosen", "learned"] = later("chosen")

    encoder_stride = 32  # largest of the encoder's maps, in pixels: it is not dilated

    def __post_init__(self):
        if (self.coordinates == "embedding") != (self.coordinate_length is not None):
            raise ValueError(
                f"coordinate_length: expected pixels with coordinates 'embedding' and null otherwise, found "
                f"{self.coordinate_length} with coordinates {self.coordinates!r}"
            )
        if self.coordinates == "embedding" and self.embedding_dim < 2:
            raise ValueError(f"embedding_dim: expected 2 or more for x and y, found {self.embedding_dim}")
        n_wanted = 4 if self.output_stride == 2 else 5
        if len(self.decoder_channels) < n_wanted:
            raise ValueError(
                f"decoder_channels: expected {n_wanted} widths or more for output stride "
                f"{self.output_stride}, found {self.decoder_channels}"
            )
        encoder = self.encoder
        check_encoder(encoder.name, self.encoder_stride, encoder.frozen, encoder.weights)

    @property
    def sees_coordinates(self) -> bool:
        """Whether x and y are channels of its input."""
        return self.coordinates in (True, "input")

    @property
    def learns_bandwidth(self) -> bool:
        """Whether it says how wide an instance is, and where one is to be looked for (`clustering.seeds`)."""
        return self.bandwidth == "learned"

    @property
    def n_channels(self) -> int:
        """Channels of its output."""
        return self.embedding_dim + (N_EXTRA if self.learns_bandwidth else 0)


@spec
class SharedNetworks:
    """A semantic and an embedding network on one encoder, which has the output stride of the semantic one."""

    semantic: SemanticNetwork
    instance: InstanceNetwork

    def __post_init__(self):
        ours, theirs = self.semantic.encoder, self.instance.encoder
        if ours != theirs:
            raise ValueError(f"encoder: expected one for both networks, found {ours!r} and {theirs!r}")
        if self.semantic.version == "bisenet" or self.instance.sees_coordinates:
            raise ValueError(
                "expected a DeepLab and embeddings without x and y in the input, whose decoders take the "
                f"encoder's maps alone, found {self.semantic.version!r} and {self.instance.coordinates!r}"
            )
        if self.instance.learns_bandwidth:
            raise ValueError("bandwidth: expected 'chosen' in a shared network, found 'learned'")

    @property
    def coordinate_length(self) -> float | None:
        return self.instance.coordinate_length

    @property
    def input_width(self) -> int | None:
        return self.instance.input_width

    @property
    def encoder_stride(self) -> int:
        return self.semantic.output_stride


@spec
class Monitor:
    """Labelled images on which a run is scored while it trains; training never sees their labels."""

    interval: Count  # iterations; the start and the end are scored too
    n_images: Count  # the first ones of every data set
    data: tuple[str, ...]


@spec
class Optimiser:
    """`head_lr_scale` multiplies the rate of layers that do not come with pre-trained weights."""

    name: Literal["adamw", "adam", "sgd"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Share
    head_lr_scale: NonNegative
    schedule: Literal["constant", "poly", "cosine"]  # poly: power 0.9
    warmup: Natural  # iterations of linear warm-up
    decay_biases: bool = later(False)  # SAC does not decay them, torch's optimisers (SPOCO) do


@spec
class Augmentation:
    """Joint image and label augmentation of a training crop (pixels, shares, radii in pixels)."""

    height: Count
    width: Count
    scale: PositivePair
    scale_of: Literal["window", "image"]  # share of the image; factor by which the image is resized
    hflip: Share
    jitter: NonNegative
    jitter_probability: Share
    blur: NonNegativePair | None


@spec
class ChannelStatistics:
    """Mean and standard deviation of a data set's red, green and blue, in [0, 1]."""

    mean: tuple[Share, Share, Share]
    std: tuple[Positive, Positive, Positive]


@spec
class Renormalisation:
    """Channel statistics by data set; images of a source get those of the target (SAC).

    SAC normalises a source image with mean' = mean_s - std_s / std_t (mean_t - mean_ImageNet) and
    std' = std_s std_ImageNet / std_t. That is the ImageNet normalisation of the image whose statistics were
    replaced, (value - mean_s) std_t / std_s + mean_t. A source without statistics is left alone.
    """

    target: ChannelStatistics
    synthia: ChannelStatistics | None
    gta5: ChannelStatistics | None

    def recolour(self, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(gain, offset) of each channel for images of the data set `origin`; None for one left alone."""
        source = {"synthia": self.synthia, "gta5": self.gta5}.get(origin)
        if source is None:
            return None
        gain = tuple(t / s for t, s in zip(self.target.std, source.std))
        return gain, tuple(t - g * s for t, g, s in zip(self.target.mean, gain, source.mean))


@spec
class Margins:
    """Hinge margins in embedding units, and the epsilon rings that widen them early (thesis 8.2)."""

    delta_var: NonNegative  # 0 pulls every pixel; object Dice and consistency need more
    delta_dist: NonNegative  # 0 pushes nothing
    kernel_threshold: Annotated[float, Field(gt=0, lt=1)]
    epsilon_0: NonNegative  # 0 switches the rings off
    epsilon_tau: Positive  # iterations
