"""Rounds of mutual refinement (thesis 13.2): instances guide masks, better masks guide instances, and again.

A round trains the semantic branch, then the instance branch; each goes on from its network of the round
before, and in round 1 from that of the ladder, which is round 0. What the branches tell each other:

==================  ====================================  ==========================================
exchange            painted on the masks' pseudo-labels   masks inside which instances are looked for
==================  ====================================  ==========================================
both                instances of the round before         those of this round
none                nothing                               those of the ladder
masks to instances  nothing                               those of this round
instances to masks  instances of the round before         those of the ladder
true masks          instances of the round before         true ones
true instances      all true ones                         those of this round
==================  ====================================  ==========================================

The last two read labels of target train images: they bound what better messages could give. All train
equally long. Exchanges that have said the same so far share their runs, as equal keys do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from panolib.study.grid import Grid
from panolib.study.settings import Refinement

EXPERIMENT, START = "rounds", "start"


@dataclass(frozen=True)
class Exchange:
    """What a round paints on semantic pseudo-labels, and whose masks guide the instances."""

    painted: Literal["predicted", "true"] | None
    masks: Literal["ladder", "round", "true"]

    @property
    def reads_labels(self) -> bool:
        """Whether its training reads labels of target train images."""
        return "true" in (self.painted, self.masks)


EXCHANGES = {
    "both": Exchange("predicted", "round"),
    "none": Exchange(None, "ladder"),
    "masks to instances": Exchange(None, "round"),
    "instances to masks": Exchange("predicted", "ladder"),
    "true masks": Exchange("predicted", "true"),
    "true instances": Exchange("true", "round"),
}


def declare_refinement(grid: Grid, settings: Refinement | None) -> None:
    """Every exchange, round by round, beside the ladder of a domain that the settings name.

    Tag values: exchange ("start" for round 0, which all share), round, to_go (rounds that follow).
    """
    if settings is None or not settings.takes(grid.domain, grid.seed):
        return
    ladder = {branch: grid.run(branch, "self_trained") for branch in ("semantic", "instance")}
    start = grid.run("panoptic", "self_trained")
    grid.tag(EXPERIMENT, *ladder.values(), start, exchange=START, round=0, to_go=settings.rounds)
    for name, exchange in EXCHANGES.items():
        semantic, instance = ladder["semantic"], ladder["instance"]
        for number in range(1, settings.rounds + 1):
            variant = f"rounds.{name.replace(' ', '_')}.{number}"
            told: dict[str, Any] = {} if exchange.painted is None else {"painted": exchange.painted}
            if exchange.painted == "predicted":
                clustering = grid.run("instance", "source_only")
                told["parents"] = {"instance": instance, "clustering": clustering, "semantic": semantic}
            if exchange.painted == "true":
                told["target"] = grid.train
            semantic = grid.self_training(
                "self_trained", semantic, grid.settings.semantic_source, variant,
                iterations=settings.semantic_iterations, where="refinement", **told,
            )  # fmt: skip
            true = {"target": grid.train, "truth_share": 1.0} if exchange.masks == "true" else {}
            instance = grid.instance_self_training(
                "self_trained", variant, start=instance,
                semantic=ladder["semantic"] if exchange.masks == "ladder" else semantic,
                iterations=settings.instance_iterations, where="refinement", **true,
            )  # fmt: skip
            scores = grid.panoptic("self_trained", semantic, instance, variant)
            at = {"exchange": name, "round": number, "to_go": settings.rounds - number}
            grid.tag(EXPERIMENT, semantic, instance, scores, **at)
