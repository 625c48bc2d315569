"""What a run that trains nothing is told: it evaluates networks of other runs, or does without any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from panolib.clustering.algorithms import Algorithm
from panolib.config import Count, Counts, Different, Natural, NonNegative, Share, later, spec
from panolib.data.render import city
from panolib.inference.panoptic import MERGE_RULES
from panolib.inference.views import Views
from panolib.scoring.classical import ClassicalAlgorithm
from panolib.training.run_specs import RunSpec
from panolib.training.specs import SemanticNetwork, StudentOrTeacher

MergeRules = Annotated[tuple[Literal[MERGE_RULES], ...], Field(min_length=1), Different]


@spec(kw_only=True)
class ScoresSpec(RunSpec):
    """Scores on the labelled images of the data set `validation`."""

    validation: str


@spec(kw_only=True)
class TransferSpec(ScoresSpec):
    """A trained network ("start") scored on the target of another domain."""

    network: SemanticNetwork


@spec(kw_only=True)
class SemanticScoresSpec(ScoresSpec):
    """A semantic network on its own."""

    scored: StudentOrTeacher
    views: Views | None = later(None)  # of every image, for the class probabilities; null: it alone


@spec(kw_only=True)
class PanopticSpec(ScoresSpec):
    """A semantic and an instance run together."""

    merge_rules: MergeRules
    min_size: Natural
    opening: Natural
    min_region: Natural
    n_samples: Natural
    scored: StudentOrTeacher = later("student")  # of both parents
    views: Views | None = later(None)  # as of a semantic network; embeddings see the reflections


@spec(kw_only=True)
class GapSpec(RunSpec):
    """Which group of style parameters costs what: source scenes with one group taken from the target."""

    source_style: city.StyleName
    target_style: city.StyleName
    n_images: Count
    height: Count
    width: Count
    scene_seed: Natural


@spec(kw_only=True)
class ThreatSpec(ScoresSpec):
    """One instance network, or several that share the thing classes.

    Parents: "semantic", and for every network "instance.<name>" and "clustering.<name>". A network answers
    for the classes of its spec. Metrics are counts of every image and class: tables pool them over any
    part of the images.
    """

    min_size: Natural
    truth_shares: tuple[Share, ...]  # of wrong pixels of the masks, corrected; 0: predicted, 1: true
    kernels: tuple[Natural, ...]  # of the morphology, pixels; 0: none
    guided: bool
    scored: StudentOrTeacher = later("student")  # of all parents


@spec(kw_only=True)
class ClassicalSpec(ScoresSpec):
    """Instances without embeddings; settings are chosen on `selection`.

    With masks of a network, of the parent "semantic", there is no image to smooth.
    """

    selection: str
    n_selection: Count
    masks: Literal["otsu", "predicted"]
    algorithm: ClassicalAlgorithm
    smoothings: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    sigmas: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    min_distances: Annotated[Counts, Different]
    min_sizes: Annotated[tuple[Natural, ...], Field(min_length=1), Different]
    merge_rules: MergeRules
    n_samples: Natural
    scored: StudentOrTeacher = later("student")  # of the parent


@spec(kw_only=True)
class ClusteringCostSpec(RunSpec):
    """Sizes of synthetic embedding maps, twice as wide as high, and how often each call is timed."""

    algorithms: tuple[Algorithm, ...]
    # heights of the embedding grid, with the first of `n_instances`
    heights: Annotated[tuple[Count, ...], Field(min_length=2)]
    n_instances: Counts  # objects, on a map of the last height but one
    embedding_dim: Count
    repeats: Count
