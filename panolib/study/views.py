"""The rungs of a ladder scored again, their networks looking at several views of every image.

Nothing is trained: `inference.views` says what is averaged. One set of views should be the image alone, for
networks whose weights are trained again to be scored are not those of the ladder's records to the last bit.
"""

from __future__ import annotations

from panolib.config import to_plain
from panolib.inference.views import SETS, Views
from panolib.lab.run import Run
from panolib.study.grid import Grid
from panolib.study.parents import CLEANUP
from panolib.study.settings import SeveralViews
from panolib.study.study import WITH_TEACHER, run_name

EXPERIMENT = "views"
CHOICE = "views choice"  # on the source


def declare_views(grid: Grid, settings: SeveralViews | None) -> None:
    """Every rung of a domain that the settings name, in every set of views; tag value: views, the set's name.

    The source-only rung is also scored on images of the source, where views may be chosen. Where the domain
    has a choice of clustering and clean-up by PQ (`cleanup`), instances are found with that.
    """
    if settings is None or not settings.takes(grid.domain, grid.seed):
        return
    own = settings.domains[grid.domain]
    for name in own.views:
        views = SETS[name]
        for rung in WITH_TEACHER:
            if grid.has("panoptic", rung) or grid.has("semantic", rung):
                grid.tag(EXPERIMENT, _scores(grid, rung, name, views), views=name)
        on_source = _scores(grid, "source_only", f"{name}.source", views, validation=own.selection)
        grid.tag(CHOICE, on_source, views=name)


def _scores(grid: Grid, rung: str, name: str, views: Views, **values) -> Run:
    values, variant = {**values, "views": to_plain(views)}, f"{EXPERIMENT}.{name}"
    if not grid.has("panoptic", rung):
        ladder = grid.run("semantic", rung)
        network = dict(ladder.parents).get("semantic", ladder)  # scores of a teacher train nothing
        own = {"label_set": ladder.spec.label_set, "scored": getattr(ladder.spec, "scored", "student")}
        return grid.semantic_scores(rung, network, variant, **own, **values)
    cleaned = run_name(grid.domain, "panoptic", rung, grid.seed, CLEANUP) in grid.runs
    ladder = grid.run("panoptic", rung, CLEANUP if cleaned else "")
    parents = dict(ladder.parents)
    own = {role: parents.get(role) for role in ("clustering", "cleanup")}
    networks = parents["semantic"], parents["instance"]
    return grid.panoptic(rung, *networks, variant, **own, scored=ladder.spec.scored, **values)
