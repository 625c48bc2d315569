"""Settings of the measuring run of notebook 14, apart from what measures, which takes seconds to import."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from panolib.config import Count, Counts, Natural, Positive, Seed, Share, Size, spec
from panolib.data.render import city
from panolib.training.specs import InstanceNetwork, SemanticNetwork


@spec
class StepSpec:
    """The semantic self-training step that is timed, on images of the embedded city."""

    network: SemanticNetwork
    height: Count
    width: Count
    batch_size: Count
    n_target: Count
    n_views: Count
    iterations: Annotated[int, Field(ge=2)]  # the first one is not timed
    source_style: city.StyleName
    target_style: city.StyleName


@spec
class InstanceStepSpec:
    """The self-training step of embeddings that is timed, on crops of the embedded city."""

    label_set: str
    network: InstanceNetwork
    height: Count  # of the crops, pixels; images are twice as high and wide
    width: Count
    batch_size: Count
    source_share: Share
    min_stability: Share | None
    bandwidth: Positive
    start: Count  # iterations on the source before
    iterations: Annotated[int, Field(ge=2)]  # the first one is not timed
    source_style: city.StyleName
    target_style: city.StyleName


@spec
class PerformanceSpec:
    """Sizes of the inputs, and how often each pair is timed."""

    label_set: str  # of the images whose real embeddings are clustered
    validation: str  # those images, of the training domain
    n_images: Count
    min_size: Natural
    height: Count  # of embedding and label maps, pixels
    width: Count
    panoptic_height: Count  # of the maps that panoptic and semantic scores compare, pixels
    panoptic_width: Count
    n_files: Count  # images of that size whose panoptic quality is computed from PNG files
    embedding_dims: Counts
    n_instances: Counts
    batch_size: Count
    repeats: Count
    threads: Counts
    step: StepSpec
    scaling_step: StepSpec
    instance_step: InstanceStepSpec
    step_sizes: Annotated[tuple[Size, ...], Field(min_length=1)]  # height and width, pixels
    step_batches: Counts  # source crops, and as many target images
    render_height: Count
    render_width: Count
    n_rendered: Count
    render_processes: Counts
    seed: Seed
    before_training: bool  # the loss also where no instance is told from another
