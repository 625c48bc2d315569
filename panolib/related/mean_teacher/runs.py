"""The runs of the peer on nuclei: torch-em with the images of our ladder, and as many of them.

=============  ===========================================================================================
rung           what its training sees
=============  ===========================================================================================
source_only    labelled crops of the rendered source
control        more of these, from source_only on, for as many iterations as the next
mean_teacher   the same, and crops of the target without labels, which the teacher labels; from source_only on
=============  ===========================================================================================

The teacher is what is kept and scored. Epochs and settings of the watershed are chosen on the source.
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
    further = {name: section["adaptation"][name] for name in ("lr", "iterations", "batch_size")}

    def trained(kind: str, rung: str, cls: type, parents: Mapping, data: tuple[str, ...], **values):
        run = grid.add(kind, "peer", rung, cls, "", parents, data, variant=VARIANT, **{**shared, **values})
        grid.tag("peers", run, method=rung)
        scores = grid.add(
            "peer_scores", "peer_scores", rung, PeerScoresSpec, "", {"peer": run}, (grid.val,),
            variant=VARIANT, validation=grid.val, n_samples=settings.n_samples,
        )  # fmt: skip
        grid.tag("peers", scores, method=rung)
        return run

    start = trained("peer_baseline", "source_only", PeerSpec, {}, (source, selection))
    parents = {"start": start}
    trained("peer_baseline", "control", PeerSpec, parents, (source, selection), **further)
    trained(
        "peer_mean_teacher", "mean_teacher", MeanTeacherSpec, parents, (source, selection, grid.unlabelled),
        target=grid.unlabelled, **section["adaptation"],
    )  # fmt: skip
