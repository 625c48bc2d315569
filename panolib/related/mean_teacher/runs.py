"""The runs of the peer on nuclei: torch-em with the images of our ladder, and as many of them.

=============  ===========================================================================================
rung           what its training sees
=============  ===========================================================================================
source_only    labelled crops of the rendered source
control        more of these, from source_only on: as many iterations and crops as the next
mean_teacher   the same, and crops of the target without labels, which the teacher labels; from source_only on
=============  ===========================================================================================

Every network is scored with settings of the watershed that were chosen on the source (variant `torch_em`),
and with the package's defaults (`torch_em.defaults`). Of the mean teacher that is the teacher, which its
users keep; its student is `torch_em.student`. The epoch that is kept is the best one on the source.
"""

from __future__ import annotations

from collections.abc import Mapping

from panolib.config import Count, Natural, Positive, ProfileError, Share, Size, from_mapping, spec, to_plain
from panolib.related.mean_teacher.kinds import PeerScoresSpec
from panolib.related.mean_teacher.library import PeerNetwork
from panolib.related.mean_teacher.training import MeanTeacherSpec, PeerSpec
from panolib.related.mean_teacher.watershed import WatershedGrid
from panolib.study.grid import Grid
from panolib.study.settings import Profile

DOMAIN, VARIANT = "nuclei", "torch_em"
VARIANTS = (  # of scores: variant, network, settings of the watershed
    (VARIANT, "teacher", "source"),
    (f"{VARIANT}.defaults", "teacher", "package"),
    (f"{VARIANT}.student", "student", "source"),
)


@spec
class Adaptation:
    """What differs in the second stage, of the control as well."""

    lr: Positive
    iterations: Count
    batch_size: Count
    n_target: Count
    ema_decay: Share
    confidence: Share | None


@spec
class PeerSettings:
    """Section `peers` of a profile."""

    seeds: tuple[int, ...]
    network: PeerNetwork
    lr: Positive
    crop: Size
    batch_size: Count
    iterations: Count
    interval: Count  # iterations of an epoch, in both stages
    n_selection: Count
    watershed: WatershedGrid
    adaptation: Adaptation
    n_samples: Natural


def read_settings(profile: Profile, where: str) -> PeerSettings | None:
    """The section; None where it is left out. Raises ProfileError for one without nuclei to train on."""
    if profile.peers is None:
        return None
    if DOMAIN not in profile.ladders:
        raise ProfileError(f"{where}: peers: expected a section {DOMAIN!r} beside it, found none")
    return from_mapping(PeerSettings, profile.peers, where=f"{where}: peers")


def declare_peers(grid: Grid, settings: PeerSettings) -> None:
    """Declare training and scores of every rung, with the seed of the grid."""
    if grid.seed not in settings.seeds:
        return
    source, selection = grid.settings.instance_source, grid.settings.instance_selection
    section = to_plain(settings)
    shared = {name: section[name] for name in PeerSpec.__dataclass_fields__ if name in section}
    shared |= {"source": source, "selection": selection}
    further = settings.adaptation
    more = {"lr": further.lr, "iterations": further.iterations}
    more["batch_size"] = further.batch_size + further.n_target

    def trained(kind: str, rung: str, cls: type, parents: Mapping, data: tuple[str, ...], **values):
        run = grid.add(kind, "peer", rung, cls, "", parents, data, variant=VARIANT, **{**shared, **values})
        grid.tag("peers", run)
        for variant, scored, watershed in VARIANTS:
            if scored == "teacher" or cls is MeanTeacherSpec:
                scores = grid.add(
                    "peer_scores", "panoptic", rung, PeerScoresSpec, "", {"peer": run}, (grid.val,),
                    variant=variant, validation=grid.val, scored=scored, watershed=watershed,
                    n_samples=settings.n_samples if variant == VARIANT else 0,
                )  # fmt: skip
                grid.tag("peers", scores, scored=scored, watershed=watershed)
        return run

    start = trained("peer_baseline", "source_only", PeerSpec, {}, (source, selection))
    parents = {"start": start}
    trained("peer_baseline", "control", PeerSpec, parents, (source, selection), **more)
    trained(
        "peer_mean_teacher", "mean_teacher", MeanTeacherSpec, parents, (source, selection, grid.unlabelled),
        target=grid.unlabelled, **section["adaptation"],
    )  # fmt: skip
