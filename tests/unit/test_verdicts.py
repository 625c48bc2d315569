"""Claims as data: every one parses, finds its runs in profile cpu, and is decided by the one rule."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from panolib.config import ProfileError
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.metrics.from_counts import class_mean, pq
from panolib.report import verdicts as report
from panolib.report.counted import Counted
from panolib.report.intervals import (
    CONTRADICTED,
    HOLDS,
    NO_DIFFERENCE,
    NOT_TESTABLE,
    UNDECIDED,
    Interval,
    class_mean_threat_score,
    paired_over_images,
)
from panolib.report.rows import NotInProfile
from panolib.report.verdicts import Claim, Side
from panolib.study.study import NOTEBOOKS

CLAIMS = report.read_claims()
EVERY = [(notebook, name) for notebook, claims in CLAIMS.items() for name in claims]


@pytest.fixture(scope="module")
def cpu():
    """The study of profile cpu with its recorded runs."""
    return load("cpu", train=False)


def selections(claim):
    """What both sides of a claim select."""
    for part in (claim.a, claim.b):
        for one in [part] if hasattr(part, "keys") else part:
            yield {**(claim.of or {}), **one}


# --- the file -----------------------------------------------------------------------------------------------


def test_sections_are_notebooks_in_their_order():
    assert list(CLAIMS) == [name for name in NOTEBOOKS if name in CLAIMS]


@pytest.mark.parametrize("notebook, name", EVERY)
def test_claim_says_where_it_stands_and_what_decides(notebook, name):
    claim = CLAIMS[notebook][name]
    assert claim.claim and claim.source and claim.smallest >= 0
    if claim.given or claim.not_testable:
        assert not (claim.a or claim.b or claim.of)
    else:
        assert claim.metric and claim.a


@pytest.mark.parametrize("notebook, name", EVERY)
def test_claim_finds_its_values_in_profile_cpu(notebook, name, cpu):
    skip_if_not_recorded(notebook, cpu)
    claim = CLAIMS[notebook][name]
    for selection in selections(claim):
        if left_out(selection, cpu):
            continue
        values = report.side(cpu, claim.metric, selection).by_seed
        assert len(values) and values.notna().all()


def skip_if_not_recorded(notebook, cpu):
    """The file of a notebook's verdicts; one whose cpu record is not made yet has none, as README says."""
    file = cpu.results / "tables" / f"{notebook[:2]}_findings.csv"
    if not file.exists():
        pytest.skip("its cpu record is not made yet")
    return file


def left_out(selection, cpu):
    """Whether a claim is about an experiment, a domain, a workflow or a share that profile cpu has not."""
    shares = cpu.profile.experiments.shares
    tags = [tag for tag in cpu.tags if tag.experiment == selection.get("experiment")]
    domains = {cpu.runs[tag.run].domain for tag in tags}
    if not tags or selection.get("domain", next(iter(domains))) not in domains:
        return True
    if selection["experiment"] == "method":
        method = cpu.profile.method
        lengths = method.domains[selection["domain"]]
        parts = {None, "none", "all", *method.semantic, *method.instance} - {*lengths.without}
        of_instances = selection["in_branch"] in ("instance", "both")
        if selection.get("part") not in parts or (of_instances and lengths.instance_iterations is None):
            return True
    if selection.get("threshold") not in (None, *cpu.profile.detr["rule"]["thresholds"]):
        return True
    workflow = selection.get("workflow")
    known = [*shares, "baseline", *(["ccm baseline"] if "ccm" in shares else [])]
    if not isinstance(workflow, str):
        return False
    return workflow not in known or selection.get("share") not in (None, *shares.get(workflow, ()))


def test_no_finding_of_the_first_reports_is_lost():
    """Their number; where one row compared several things, each is a claim of its own."""
    first = {
        "00_data": 2, "01_dataset_mixing": 14, "02_clustering_comparison": 7, "03_category_models": 6,
        "04_forgetting": 6, "05_guided_masks": 11, "06_instance_results": 9, "07_panoptic_results": 11,
        "09_realtime_adaptation": 27, "10_detr_panoptic": 19,
    }  # fmt: skip
    assert sum(first.values()) == 112
    assert all(len(CLAIMS[notebook]) >= number for notebook, number in first.items())


@pytest.mark.parametrize("notebook", [name for name, claims in CLAIMS.items() if claims])
def test_recorded_verdicts_follow_from_the_rule(notebook, cpu):
    file = skip_if_not_recorded(notebook, cpu)
    recorded = pd.read_csv(file, index_col="id", keep_default_na=False)
    assert list(recorded.index) == list(CLAIMS[notebook])
    for name, line in recorded.iterrows():
        if not CLAIMS[notebook][name].given:
            assert report.decide(cpu, CLAIMS[notebook][name])["verdict"] == line["verdict"], name


# --- sides --------------------------------------------------------------------------------------------------


def test_the_mean_over_what_is_left_open_is_the_value_of_a_seed(cpu):
    selection = {"experiment": "semantic ladder", "rung": "self_trained"}
    found = report.side(cpu, "miou_19", selection).by_seed
    recorded = [cpu.get(f"city-semantic-self_trained-s{seed}").metrics for seed in cpu.seeds]
    assert len(cpu.seeds) == 3 and found.tolist() == [metrics["miou_19"] for metrics in recorded]
    things = report.side(cpu, "iou", {**selection, "subset": list(CITYSCAPES.things)}).by_seed
    expected = [np.mean([metrics["iou"][thing] for thing in CITYSCAPES.things]) for metrics in recorded]
    assert things.tolist() == pytest.approx(expected)


def test_a_threat_score_has_the_counts_of_every_image(cpu):
    found = report.side(cpu, report.THREAT, {"experiment": "E7", "weight": 1.0, "truth_share": 1.0})
    n_things = len(CITYSCAPES.things)
    n_images = cpu.get("city-threat-consistency.1-s0").metrics["n_images"]
    seeds = cpu.profile.experiments.consistency_seeds
    counts = np.stack([found.terms[seed][0].counts for seed in seeds])
    assert counts.shape == (len(seeds), n_images, n_things, 3)
    assert found.images == ("city", "cityscapes/val", n_images)
    totals = counts.sum((1, 2))
    rows = report.image_counts(cpu, "E7", weight=1.0, truth_share=1.0, kernel=0, branch="threat")
    assert totals.tolist() == rows.groupby("seed")[["tp", "fp", "fn"]].sum().to_numpy().tolist()
    one_class = {"experiment": "E7", "weight": 1.0, "truth_share": 1.0, "class": "bus"}
    assert report.side(cpu, report.THREAT, one_class).terms[0][0].counts.shape[1] == 1


def test_a_curve_is_read_at_its_beginning_and_its_end(monkeypatch):
    table = pd.DataFrame({"run": list("aaabbb"), "seed": [0] * 3 + [1] * 3, "iteration": [1, 2, 3] * 2,
                          "loss": [3.0, 2, 1, 6, 5, 4]})  # fmt: skip
    monkeypatch.setattr(report, "curves", lambda study, experiment: table)
    for part, expected in ((0, [3, 6]), (0.5, [2, 5]), (1, [1, 4])):
        found = report.side(None, "curve: loss", {"experiment": "E0", "at": part})
        assert found.by_seed.tolist() == expected


# --- comparisons --------------------------------------------------------------------------------------------


def side_of(values):
    return Side(pd.Series(values, dtype=float))


def test_only_seeds_of_both_sides_are_compared():
    found = report.compare(side_of({0: 0.3, 1: 0.4, 2: 0.5}), side_of({1: 0.2, 2: 0.3, 3: 0.9}))
    assert found.estimate == pytest.approx(20) and found.n_seeds == 2
    with pytest.raises(LookupError, match="no seed that both sides have"):
        report.compare(side_of({0: 1.0}), side_of({1: 1.0}))


def test_units():
    a, b = side_of({0: 0.3, 1: 0.6}), side_of({0: 0.15, 1: 0.3})
    assert report.compare(a, b, "points", at_least=5).estimate == pytest.approx(22.5 - 5)
    assert report.compare(a, b, "px").estimate == pytest.approx(0.225)
    ratio = report.compare(a, b, "ratio")
    assert ratio.estimate == pytest.approx(100 * np.log(2)) and ratio.low == pytest.approx(ratio.high)


def counted_side(counts, score=class_mean_threat_score, images="val"):
    """A side of counts [n_seeds, n_images, n_classes, n_counts]."""
    values = {seed: score(of_seed.sum(0)) for seed, of_seed in enumerate(counts)}
    terms = {seed: [Counted(of_seed, score)] for seed, of_seed in enumerate(counts)}
    return Side(pd.Series(values, dtype=float), terms, (images, counts.shape[1]))


def curve_of(values, statistic="mean"):
    """A side from {seed: {iteration: value}}."""
    curve = pd.DataFrame(values).T
    return Side(curve.agg(statistic, axis=1), curve=curve, statistic=statistic)


def test_curves_are_compared_at_the_seeds_and_iterations_of_both():
    level = {0: 1.0, 1: 50.0, 2: 99.0}
    a = curve_of({seed: {i: level[seed] + i for i in range(10)} for seed in level})
    one = curve_of({2: {i: level[2] + i - 3 for i in range(10)}})
    found = report.compare(a, one, "s")
    assert (found.estimate, found.n_seeds) == (pytest.approx(3), 1)
    assert found.over == "1 seed, 10 iterations (worth 10)"
    two = curve_of({seed: {i: level[seed] + i - 3 for i in range(4, 12)} for seed in (1, 2)})
    found = report.compare(a, two, "s")
    assert (found.estimate, found.over) == (pytest.approx(3), "2 seeds, 6 iterations (worth 6)")
    assert report.compare(a, two, "ratio").over.startswith("2 seeds, 6 iterations")
    with pytest.raises(NotInProfile, match="no iteration"):
        report.compare(a, curve_of({2: {99: 1.0}}), "s")


def test_counts_of_images_are_compared_over_images():
    counts = np.random.default_rng(0).integers(1, 5, (2, 3, 20, 2, 3))
    a, b = map(counted_side, counts)
    found = report.compare(a, b)
    assert found.over == "3 seeds, 20 images"
    expected = paired_over_images(class_mean_threat_score, *counts)
    assert (found.estimate, found.low, found.high) == pytest.approx(
        [100 * x for x in (expected.estimate, expected.low, expected.high)]
    )
    assert report.compare(a, b, "objects").over == "3 seeds only"
    assert report.compare(a, side_of(dict.fromkeys(range(3), 0.1))).over == "3 seeds only"


def test_a_seed_without_a_value_is_left_out():
    counts = np.random.default_rng(0).integers(1, 5, (2, 3, 20, 2, 3))
    a, b = map(counted_side, counts)
    b.by_seed[2] = np.nan
    del b.terms[2]  # as of rows without a value
    found = report.compare(a, b)
    assert found.over == "2 seeds, 20 images"
    expected = paired_over_images(class_mean_threat_score, *counts[:, :2])
    assert found.estimate == pytest.approx(100 * expected.estimate)
    nothing = Side(pd.Series(np.nan, range(3)))
    assert np.isnan(report.compare(a, nothing).estimate)


def test_a_ratio_is_over_images_too():
    counts = np.random.default_rng(0).integers(1, 5, (2, 3, 20, 2, 3))
    a, b = map(counted_side, counts)
    found = report.compare(a, b, "ratio")
    assert found.over == "3 seeds, 20 images" and found.low < found.estimate < found.high
    logs = np.log(a.by_seed) - np.log(b.by_seed)
    assert found.estimate == pytest.approx(100 * logs.mean())


def test_other_images_vary_by_themselves():
    """What two sides share cancels where they are the same images, and does not where they are not."""
    generator = np.random.default_rng(1)
    shared = generator.integers(0, 9, (1, 60, 1, 1))
    a, b = (shared + generator.integers(0, 2, (3, 60, 2, 3)) for _ in range(2))
    a[..., 0] += 9 * (generator.random((1, 60, 1)) < 0.5)  # images that are hard for both
    b[..., 0] = a[..., 0]
    paired = report.compare(counted_side(a), counted_side(b))
    apart = report.compare(counted_side(a), counted_side(b[:, :50], images="other"))
    assert apart.over == "3 seeds, 50 images" and apart.high - apart.low > 2 * (paired.high - paired.low)


def test_a_given_value_leaves_the_images_of_the_other_side():
    counts = np.random.default_rng(0).integers(1, 5, (3, 20, 2, 3))
    a = counted_side(counts)
    found = report.compare(a, Side(0.0 * a.by_seed, fixed=True))
    assert found.over == "3 seeds, 20 images" and found.estimate == pytest.approx(100 * a.by_seed.mean())


def test_a_class_that_few_images_show_has_an_interval():
    """Some resamples hold none of its images: they say nothing, and the others do."""
    counts = np.zeros((2, 3, 40, 1, 3), int)
    counts[:, :, 7] = [[[1, 0, 1]]]
    counts[0, :, 8] = [[[1, 0, 0]]]
    found = report.compare(*map(counted_side, counts))
    assert np.isfinite([found.low, found.high]).all() and found.low < found.estimate < found.high


def test_the_mean_of_several_rows_is_resampled_as_one():
    generator = np.random.default_rng(2)
    first, second = generator.integers(1, 9, (2, 3, 30, 4, 3))
    terms = {
        seed: [Counted(counts[seed], class_mean_threat_score) for counts in (first, second)]
        for seed in range(3)
    }
    values = Side(pd.Series([0.0] * 3), terms, ("val", 30)).values([0, 1, 2], np.ones(30))
    expected = (class_mean_threat_score(first.sum(1)) + class_mean_threat_score(second.sum(1))) / 2
    assert values == pytest.approx(expected)


def test_intervals_of_every_score_take_less_than_a_second():
    """2,000 resamples of 120 images, 19 classes and three seeds, twice as many as are asked for."""
    counts = np.random.default_rng(3).integers(0, 50, (2, 3, 120, 19, 5))
    mean_pq = lambda sums: class_mean(pq(sums))  # noqa: E731
    a, b = (counted_side(side, mean_pq) for side in counts)
    began = time.process_time()
    found = report.compare(a, b)
    assert time.process_time() - began < 1 and found.over == "3 seeds, 120 images"


# --- decisions ----------------------------------------------------------------------------------------------


@pytest.fixture
def decide(monkeypatch):
    """decide(values of a, values of b, **claim) -> the line of the table."""

    def decided(a=(), b=(), *, given=None, sides=("a", "b"), others=None, **claim):
        values = {"a": a, "b": b, "low": {0: 0.1}, "high": {0: 0.2}, **(others or {})}

        def side(study, metric, selection):
            if selection["of"] not in values:
                raise NotInProfile("no run with it")
            return side_of(values[selection["of"]])

        monkeypatch.setattr(report, "side", side)
        selected = [
            {"of": name} if isinstance(name, str) else tuple({"of": n} for n in name) for name in sides
        ]
        claim |= dict(zip("ab", selected)) if given is None else {"given": True}
        claims = {"01": {"c": Claim("sentence", "source", **claim)}}
        monkeypatch.setattr(report, "read_claims", lambda: claims)
        return report.verdicts(SimpleNamespace(), "01", {} if given is None else {"c": given}).loc["c"]

    return decided


HIGH, LOW = {0: 0.5, 1: 0.51, 2: 0.52}, {0: 0.3, 1: 0.31, 2: 0.33}


@pytest.mark.parametrize(
    "a, b, claim, expected",
    [
        (HIGH, LOW, {}, HOLDS),
        (LOW, HIGH, {}, CONTRADICTED),
        (LOW, HIGH, {"expected": "lower"}, HOLDS),
        (HIGH, LOW, {"expected": "same"}, CONTRADICTED),
        (HIGH, LOW, {"at_least": 25.0}, CONTRADICTED),
        (HIGH, LOW, {"at_least": 15.0}, HOLDS),
        ({0: 0.3, 1: 0.31, 2: 0.32}, {0: 0.299, 1: 0.311, 2: 0.32}, {}, NO_DIFFERENCE),
        ({0: 0.3, 1: 0.31, 2: 0.32}, {0: 0.299, 1: 0.311, 2: 0.32}, {"expected": "same"}, HOLDS),
        ({0: 0.3, 1: 0.4, 2: 0.2}, {0: 0.2, 1: 0.45, 2: 0.1}, {}, UNDECIDED),
        ({0: 0.9}, {0: 0.1}, {}, UNDECIDED),
    ],
)
def test_verdict_follows_from_the_interval(a, b, claim, expected, decide):
    line = decide(a, b, **claim)
    assert line["verdict"] == expected and line["reason"] == ""


def test_a_missing_value_is_not_testable_here_and_says_why(decide):
    missing = decide(HIGH, LOW, sides=("a", "elsewhere"))
    assert (missing["verdict"], missing["reason"]) == (NOT_TESTABLE, "not in this profile (no run with it)")
    nothing = decide({0: np.nan}, {0: 0.1})
    assert (nothing["verdict"], nothing["reason"]) == (
        NOT_TESTABLE,
        "not in this profile (nothing to count on one side)",
    )
    assert decide({0: 0.1}, {1: 0.1})["verdict"] == NOT_TESTABLE
    reasoned = decide(HIGH, LOW, not_testable="nothing fuses")
    assert (reasoned["verdict"], reasoned["reason"]) == (NOT_TESTABLE, "nothing fuses")


def test_sides_that_must_be_alike_are_told_apart_by_their_settings(monkeypatch):
    """The values stay: 192 lines of an image beside 160 are another training, not another method."""
    runs, values = {}, {"a": (160, HIGH), "b": (160, LOW), "c": (192, {0: 0.4, 1: 0.4, 2: 0.4})}
    for name, (height, _) in values.items():
        runs[name] = SimpleNamespace(spec=SimpleNamespace(crop=SimpleNamespace(height=height)))

    def side(study, metric, selection):
        return Side(pd.Series(values[selection["of"]][1]), runs=(selection["of"],))

    monkeypatch.setattr(report, "side", side)
    claim = Claim("sentence", "source", alike=("crop.height",), a={"of": "a"}, b={"of": "b"})
    assert report.decide(SimpleNamespace(runs=runs), claim)["verdict"] == HOLDS
    line = report.decide(SimpleNamespace(runs=runs), replace(claim, b=({"of": "b"}, {"of": "c"})))
    assert (line["verdict"], line["ours"]) == (NOT_TESTABLE, "51.0 % against 40.0 %")
    assert line["reason"] == "the two differ in crop.height (160 against 192)"


def test_settings_are_compared_of_scores_only():
    claims = [claim for of_notebook in CLAIMS.values() for claim in of_notebook.values() if claim.alike]
    assert claims and not any(":" in claim.metric or claim.metric == report.THREAT for claim in claims)


def test_of_several_selections_the_best_one_is_compared(decide):
    line = decide(HIGH, LOW, sides=(("b", "a"), "b"))
    assert line["ours"] == "51.0 % against 31.3 %" and line["verdict"] == HOLDS


def test_the_best_one_is_chosen_on_seeds_that_all_have(decide):
    """A seed that is easy for all must not make the best of one that lacks the others."""
    hard, easy = {0: 0.9, 1: 0.31, 2: 0.30}, {0: 0.8}
    line = decide({0: 0.95, 1: 0.4, 2: 0.4}, easy, sides=("a", ("b", "c")), others={"c": hard})
    assert line["over"] == "3 seeds only" and line["difference"] == pytest.approx(100 * (1.75 - 1.51) / 3)
    nothing = decide(HIGH, {0: np.nan, 1: np.nan, 2: np.nan}, sides=("a", ("b", "c")), others={"c": LOW})
    assert nothing["verdict"] == HOLDS


@pytest.mark.parametrize("excess", [7.5, 8.0, 8.5])
def test_what_lies_about_a_bound_is_not_called_no_difference(decide, excess):
    a = {seed: 0.2 + (excess + noise) / 100 for seed, noise in enumerate((-0.2, 0.0, 0.2))}
    line = decide(a, dict.fromkeys(range(3), 0.2), at_least=8.0)
    assert line["verdict"] == (HOLDS if excess == 8.5 else UNDECIDED if excess == 8 else CONTRADICTED)


@pytest.mark.parametrize("zeros", [{0: 0.0, 1: 0.1, 2: 0.2}, dict.fromkeys(range(3), 0.0)])
def test_a_ratio_of_nothing_decides_nothing(decide, zeros):
    line = decide(HIGH, zeros, unit="ratio")
    assert (line["verdict"], line["over"]) == (NOT_TESTABLE, "") and "nothing to count" in line["reason"]


def test_given_values(decide):
    assert decide(given=True)["verdict"] == HOLDS and decide(given=False)["verdict"] == CONTRADICTED
    assert decide(given=Interval(3, 2, 4, 3))["verdict"] == HOLDS
    with pytest.raises(ValueError, match=r"expected given values for \['c'\], found \[\]"):
        report.verdicts(SimpleNamespace(), "01")


def test_shown_to_a_reader(decide):
    shown = report.show(decide(HIGH, LOW).to_frame().T)
    assert shown.loc["sentence", "difference [95 %]"].startswith("+19.7 [+18.2, +21.1] points")
    assert shown.loc["sentence", "over"] == "3 seeds only"
    ratio = report.show(decide({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}, unit="ratio").to_frame().T)
    assert ratio.loc["sentence", "difference [95 %]"] == "2.00 [2.00, 2.00] times"
    single = report.show(decide({0: 0.9}, {0: 0.1}).to_frame().T)
    assert single.loc["sentence", "difference [95 %]"] == "+80.0 points"
    missing = report.show(decide(HIGH, LOW, not_testable="why").to_frame().T)
    assert missing.loc["sentence", "verdict"] == "not testable here: why"


def test_a_damaged_claim_is_named(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    text = "01_dataset_mixing: {better: {claim: x, source: y, expectd: higher}}"
    (tmp_path / "notebooks" / "claims.yaml").write_text(text)
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    with pytest.raises(ProfileError, match=r"claims.yaml: 01_dataset_mixing\.better.*expectd"):
        report.read_claims()


COLUMNS = {  # of the tidy table and of the tables of counts and curves
    "experiment", "domain", "branch", "rung", "variant", "seed", "run", "data_set", "instances", "masks",
    "leftover", "truth_share", "kernel", "style", "threshold", "metric", "subset", "class", "at",
}  # fmt: skip
MEASURED = {"layers", "rule", "way", "ranked_by"}  # of what measuring runs record


def test_claims_select_by_words_that_the_table_has(cpu):
    """A mistyped word would make a claim "not testable here", which is a verdict of its own."""
    tags = (*cpu.tags, *load("smoke").tags)  # which leaves no workflow out
    words = {"experiment": {tag.experiment for tag in tags}, "share": {0.5, 0.75}}  # of BASE and CCM
    for tag in tags:
        for name, value in tag.values.items():  # noqa: PD011
            words.setdefault(name, set()).add(value)
    wrong = []
    for notebook, name in EVERY:
        claim = CLAIMS[notebook][name]
        free = words if claim.metric.startswith("measured") else ()  # measuring runs have values of their own
        for selection in selections(claim):
            for word, value in selection.items():
                values = set(value) if isinstance(value, list | tuple) else {value}
                known = words.get(word, values if word in COLUMNS | MEASURED else set())
                if not values <= known and word not in free:
                    wrong.append(f"{notebook}.{name}: {word}: {value}")
    assert wrong == []
