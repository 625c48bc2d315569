"""What a run that trains is told; `specs` has the parts.

The fields that several runs share stand in one class above them. Keys are made of names and values, whatever
the order and the class of a field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from panolib.clustering.algorithms import Algorithm
from panolib.config import (
    Count,
    Natural,
    NonNegative,
    NonNegativePair,
    Positive,
    PositivePair,
    Seed,
    Share,
    later,
    spec,
)
from panolib.data.mixing import source_share_counts
from panolib.losses.embedding import EmbeddingLossWeights
from panolib.training.specs import (
    Augmentation,
    Compute,
    InstanceNetwork,
    Margins,
    Monitor,
    Optimiser,
    Renormalisation,
    SemanticNetwork,
    SharedNetworks,
    StudentOrTeacher,
)


@spec(kw_only=True)
class RunSpec:
    """What every run is told; `label_set` names the classes of its networks."""

    label_set: str
    compute: Compute
    seed: Seed


@spec(kw_only=True)
class TrainingSpec(RunSpec):
    """What all trainings share. `source` is a labelled data set, for the oracle the target itself."""

    source: str
    optimiser: Optimiser
    augmentation: Augmentation  # of source crops
    iterations: Count
    batch_size: Count


@spec(kw_only=True)
class SemanticTrainingSpec(TrainingSpec):
    """What both ways to train a semantic network share."""

    validation: str
    network: SemanticNetwork
    monitor: Monitor | None = later(None)
    renormalise: Renormalisation | None = later(None)  # of source images


@spec(kw_only=True)
class BaselineSpec(SemanticTrainingSpec):
    """Supervised training on labelled images.

    `start`: a safetensors file with the weights of such a network; without, the encoder's `weights` alone.
    """

    start: str | None = later(None)


@spec(kw_only=True)
class BatchNormSpec(RunSpec):
    """Re-estimate running statistics with unlabelled target images; no weight moves.

    `source` None is strict AdaBN (target only). With a source, source and target batches alternate
    at `momentum`, which gives the mixed statistics of SAC's baseline ("ABN"): statistics never
    enter a train-mode forward pass, so ABN's weights *are* the source-only weights.
    """

    source: str | None
    target: str
    augmentation: Augmentation
    batch_size: Count
    n_batches: Count
    momentum: Share
    target_batch_size: Count | None = later(None)  # where it is not that of the source
    renormalise: Renormalisation | None = later(None)  # of source images


@spec(kw_only=True)
class SemanticBatchNormSpec(BatchNormSpec):
    """Batch-norm adaptation of a semantic network."""

    validation: str
    network: SemanticNetwork


@spec(kw_only=True)
class SelfTrainingSpec(SemanticTrainingSpec):
    """SAC self-training. `target_weight` 0 is the control: source-only continuation."""

    target: str
    n_target: Count  # target images an iteration, beside `batch_size` source crops
    n_views: Count
    zoom: PositivePair
    noise_blur: NonNegativePair | None  # pixels; None: the student sees sharp crops
    fusion_stride: Count  # fusion and target loss at 1 / stride of the image size, rounded up
    target_weight: NonNegative
    focal_exponent: NonNegative
    threshold_scale: Share
    prior_scale: Positive
    prior_momentum: Share
    minimum_threshold: Share
    ema_decay: Share
    ema_interval: Count
    batch_norm: Literal["frozen", "target"]  # as in SAC, or running statistics follow the target
    rare_class_sampling: bool
    painted: Literal["true", "predicted"] | None = later(None)  # instances on pseudo-labels
    painted_share: Share = later(1.0)  # of the instances of every image, drawn anew every iteration
    class_mix: bool = later(False)  # half of the classes of source crops go on the student's views
    rare_source: Positive | None = later(None)  # temperature at which source images of rare classes are drawn
    ego_share: Share = later(0.0)  # lowest rows of a target image, by its height, that get no pseudo-label


@spec(kw_only=True)
class EmbeddingTrainingSpec(TrainingSpec):
    """What both ways to train embeddings share; smaller instances than `min_area` are ignored."""

    network: InstanceNetwork
    weights: EmbeddingLossWeights
    margins: Margins
    min_area: Natural  # pixels of the embedding grid
    classes: tuple[str, ...] | None = later(None)  # things that it learns; None: all. Others are ignored

    def __post_init__(self):
        kernels = [name for name in ("object_dice", "consistency") if getattr(self.weights, name) > 0]
        if self.margins.delta_var == 0 and kernels:
            raise ValueError(
                f"margins.delta_var is 0, which leaves the kernel of weights.{' and weights.'.join(kernels)} "
                "without a width; expected a margin > 0, or 0 for these weights as well"
            )

    def _check_batch_norm(self, n_images: int) -> None:
        """Raise ValueError if the last map of a batch has one value a channel: that has no variance."""
        stride = self.network.encoder_stride
        height, width = self.augmentation.height, self.augmentation.width
        if n_images == 1 and max(height, width) <= stride:
            raise ValueError(
                f"augmentation: crops of {height} x {width}, one at a time, have one value a channel in the "
                f"last map of stride {stride}, which batch norm cannot learn from; expected a larger height "
                "or width, or two crops of every domain by batch_size"
            )


@spec(kw_only=True)
class InstanceBaselineSpec(EmbeddingTrainingSpec):
    """Supervised embedding training, then the choice of clustering settings; `start` as in `BaselineSpec`."""

    selection: str  # labelled data set of the *training* domain on which clustering settings are chosen
    n_selection: Count
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    merge_distances: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    start: str | None = later(None)
    selection_tolerance: Share = later(0.0)  # of the threat score: `scoring.evaluate.widest_within`

    def __post_init__(self):
        super().__post_init__()
        self._check_batch_norm(self.batch_size)


@spec(kw_only=True)
class InstanceBatchNormSpec(BatchNormSpec):
    """Batch-norm adaptation of an embedding network."""

    network: InstanceNetwork


@spec(kw_only=True)
class InstanceSelfTrainingSpec(EmbeddingTrainingSpec):
    """Self-training on pseudo-labels; `source_share` 1 is the control (source-only continuation)."""

    target: str
    source_share: Share
    algorithm: Algorithm
    min_stability: Share | None
    noise_blur: NonNegativePair | None  # pixels; None: the student sees sharp crops
    rotation: NonNegative  # largest rotation of the teacher's view, degrees
    momentum_mode: Literal["ema", "hard_copy"]  # every iteration, or every `copy_interval`
    ema_decay: Share
    copy_interval: Count
    batch_norm: Literal["frozen", "target"]
    guided: bool = later(True)  # False: all pixels are clustered, the predicted map only names the clusters
    truth_share: Share = later(0.0)  # of the wrong regions of the masks, corrected with true labels
    monitor: Monitor | None = later(None)
    noise_on: Literal["student", "teacher"] = later("student")  # SPOCO: on what the teacher is compared with
    noise_jitter_probability: Share = later(0.5)  # SPOCO: 0.8
    guide: StudentOrTeacher = later("student")  # of the semantic parent, which predicts the masks
    objectness: Share | None = later(None)  # pseudo-labels that are less probably an object are dropped
    # a pseudo-label weighs as the share of its pixels in which the mask is surer than this
    confident_weight: Share | None = later(None)
    paste: Share | None = later(None)  # pseudo-labels whose mask is as sure as this go on source crops
    # of the target crops, of images whose instances a person chose (parent "answers") and which keep these
    answered_share: Share | None = later(None)

    _ASKING = ("objectness", "confident_weight", "paste")  # fields that ask how sure the masks are

    def __post_init__(self):
        super().__post_init__()
        if self.network.learns_bandwidth:
            raise ValueError("network.bandwidth: expected 'chosen' in self-training, found 'learned'")
        asking = [name for name in self._ASKING if getattr(self, name) is not None]
        if asking and not self.guided:
            raise ValueError(f"{asking[0]}: expected none without masks, whose confidence it reads")
        if self.paste is not None and 0 in source_share_counts(self.batch_size, self.source_share):
            raise ValueError(
                f"paste: expected none where a batch has one domain, found source_share {self.source_share} "
                f"of {self.batch_size} crops"
            )
        if self.batch_norm == "target":
            for n_images in source_share_counts(self.batch_size, self.source_share):
                self._check_batch_norm(n_images)

    @property
    def asks_confidence(self) -> bool:
        """Whether training reads how sure the masks are."""
        return any(getattr(self, name) is not None for name in self._ASKING)


@spec(kw_only=True)
class SharedBaselineSpec(InstanceBaselineSpec):
    """Supervised training of a shared network: cross-entropy plus `embedding_weight` times instance terms."""

    network: SharedNetworks
    validation: str
    embedding_weight: Positive

    def __post_init__(self):
        super().__post_init__()
        if self.start is not None:
            raise ValueError("start: expected none in the training of a shared network")


@spec(kw_only=True)
class SharedBatchNormSpec(BatchNormSpec):
    """Batch-norm adaptation of a shared network."""

    validation: str
    network: SharedNetworks


@spec(kw_only=True)
class SharedSelfTrainingSpec(SelfTrainingSpec):
    """Self-training of a shared network on both pseudo-labels of the same crops.

    `target_weight` weighs the target's semantic loss, and 0 is the control; `embedding_weight` weighs the
    instance losses of both domains.
    """

    network: SharedNetworks
    weights: EmbeddingLossWeights
    margins: Margins
    min_area: Natural  # pixels of the embedding grid
    embedding_weight: Positive
    algorithm: Algorithm
    min_stability: Share | None
    rotation: NonNegative  # largest rotation of the teacher's view, degrees
    classes: tuple[str, ...] | None = None

    def __post_init__(self):
        EmbeddingTrainingSpec.__post_init__(self)
        unknown = ("monitor", "painted", "renormalise", "class_mix", "rare_source", "ego_share")
        given = [name for name in unknown if getattr(self, name)]
        if given:
            raise ValueError(f"{given[0]}: expected none in the training of a shared network")

    @property
    def guided(self) -> bool:
        """Clusters are looked for inside class masks, as in `InstanceSelfTrainingSpec`."""
        return True
