"""Runs, label quality, speed and findings of notebook 09."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from panolib.data.samples import Sample
from panolib.labels import CAMVID, CITYSCAPES, VOID
from panolib.load import load
from panolib.models.bisenet import BiSeNet
from panolib.models.encoder import Encoder
from panolib.related.realtime import speed
from panolib.related.realtime.layered_pseudo_labels import quality_rows, votes
from panolib.training.specs import Compute, EncoderSpec, SemanticNetwork

NOTEBOOK = "09_realtime_adaptation"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return load("smoke", root=tmp_path_factory.mktemp("empty"), train=False)


def test_every_method_starts_alike_and_has_the_same_budget(smoke):
    keys = []
    for domain in ("city", "camvid"):
        methods = methods_of(smoke, domain)
        start = methods["adabn"]
        adapted = [run for name, run in methods.items() if name not in ("source_only", "adabn", "oracle")]
        assert len(adapted) >= 8
        assert {dict(run.parents)["start"].key for run in adapted} == {start.key}
        for field in ("iterations", "batch_size", "optimiser", "network", "batch_norm", "augmentation"):
            assert len({str(getattr(run.spec, field)) for run in adapted}) == 1, field
        keys.append(dict(start.parents)["start"])
    assert dict(keys[1].parents)["start"].key == keys[0].key  # one source-only network for both targets


def methods_of(study, domain):
    """{method: its run} of one target."""
    runs = [study.runs[tag.run] for tag in study.tags if tag.experiment == "realtime"]
    return {run.rung: run for run in runs if run.branch == "semantic" and run.domain == domain}


def test_no_training_run_opens_target_labels(smoke):
    for name in smoke.notebooks[NOTEBOOK]:
        run = smoke.runs[name]
        if "bisenet" in name and hasattr(run.spec, "iterations") and "oracle" not in name:
            assert getattr(run.spec, "target", ":unlabelled").endswith(":unlabelled"), name
            assert run.spec.source == smoke.profile.city.semantic_source


def test_the_notebook_asks_for_declared_runs(smoke):
    assert set(smoke.notebooks[NOTEBOOK]) <= set(smoke.runs)


# --- label quality ------------------------------------------------------------------------------------------


def test_label_quality_by_hand():
    """Four pixels of two classes and a void one; the second head is surer but wrong."""
    truth = [np.array([[0, 0, 1, 1, VOID]], np.uint8)]
    found = {
        1: ([np.array([[0, 0, 1, 0, 5]], np.uint8)], [np.array([[0.95, 0.4, 0.4, 0.95, 0.99]], np.float32)]),
        2: ([np.array([[1, 1, 0, 0, 5]], np.uint8)], [np.full((1, 5), 0.99, np.float32)]),
    }
    rows = pd.DataFrame(quality_rows(found, truth, CITYSCAPES, CITYSCAPES, threshold=0.9))
    one = rows[(rows["layers"] == 1) & (rows["rule"] == "constant") & (rows["threshold"] == 0.9)].iloc[0]
    assert (one["coverage"], one["accuracy"], one["class_coverage"]) == (0.5, 0.5, 0.5)
    assert one["classes"] == 2  # also in the pixel without truth
    two = rows[(rows["layers"] == 2) & (rows["rule"] == "constant") & (rows["threshold"] == 0.9)].iloc[0]
    assert (two["coverage"], two["accuracy"]) == (1.0, 0.0)
    low = rows[(rows["layers"] == 1) & (rows["rule"] == "constant") & (rows["threshold"] == 0.3)].iloc[0]
    assert (low["coverage"], low["accuracy"]) == (1.0, 0.75)
    assert set(rows["rule"]) == {"constant", "set", "image", "reference"}


def test_label_quality_merges_and_survives_void_images():
    bus = CITYSCAPES.classes.index("bus")
    found = {1: ([np.full((2, 2), bus, np.uint8)], [np.ones((2, 2), np.float32)])}
    car = np.full((2, 2), CAMVID.classes.index("car"), np.uint8)
    rows = quality_rows(found, [car], CITYSCAPES, CAMVID, threshold=0.9)
    assert {row["accuracy"] for row in rows} == {1.0}
    void = quality_rows(found, [np.full((2, 2), VOID, np.uint8)], CITYSCAPES, CAMVID, threshold=0.9)
    assert all(math.isnan(row["coverage"]) and math.isnan(row["accuracy"]) for row in void)


def test_votes_take_the_heads_in_order():
    torch.manual_seed(0)
    model = BiSeNet(Encoder("test_efficientnet", output_stride=32), 5)
    nothing = np.zeros((32, 32), np.int32)
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    samples = [Sample(image, None, nothing, nothing > 0, "0")]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = votes(model, samples, (1, 3))
    assert list(found) == [1, 3] and found[1][0][0].shape == (32, 32)
    assert found[1][1][0].dtype == np.float32 and found[1][0][0].dtype == np.uint8
    assert not np.array_equal(found[1][1][0], found[3][1][0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- speed --------------------------------------------------------------------------------------------------

NETWORK = SemanticNetwork("bisenet", EncoderSpec("test_efficientnet", None), 32)
SPEED = speed.SpeedSpec(
    label_set="cityscapes", height=32, width=64, networks={"BiSeNet-10": NETWORK}, compiled=(),
    own={"BiSeNet": NETWORK}, own_height=32, own_width=32, repeats=3, limit_s=60.0,
    compute=Compute("cpu", "32-true", 0, True), seed=0,
)  # fmt: skip


def test_speed_rows_have_numbers_or_a_reason(monkeypatch):
    monkeypatch.setattr(speed, "has_bf16", lambda device: False)
    rows = speed.speed_rows(SPEED, 19, torch.device("cpu"))
    table = pd.DataFrame(rows).set_index(["network", "way"])
    assert table.loc["BiSeNet-10", "n"].to_dict() == {
        "contiguous": 3, "channels-last": 3, "bf16": 0, "compiled": 0,
    }  # fmt: skip
    assert "bf16" in table.loc[("BiSeNet-10", "bf16"), "note"]
    assert "compiled" in table.loc[("BiSeNet-10", "compiled"), "note"]
    assert list(table.loc["BiSeNet"].index) == ["channels-last"]  # the layout of the profile
    timed = table[table["n"] > 0]
    assert (timed["median_ms"] <= timed["p95_ms"]).all() and (timed["note"] == "").all()
    assert np.allclose(timed["images_per_s"] * timed["median_ms"], 1e3)
    assert table["median_ms"].isna().equals(table["n"] == 0)


def test_speed_stops_at_its_limit_after_one_call():
    rows = speed.speed_rows(replace(SPEED, limit_s=0.0, repeats=9), 19, torch.device("cpu"))
    assert {row["n"] for row in rows if not row["note"]} == {1}


def test_a_way_that_fails_is_a_row(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fails)
    rows = speed.speed_rows(replace(SPEED, compiled=("BiSeNet-10",)), 19, torch.device("cpu"))
    (row,) = [row for row in rows if row["way"] == "compiled"]
    assert row["note"] == "no compiler" and row["n"] == 0


# --- tables and findings ------------------------------------------------------------------------------------


def verdicts(found):
    return {finding.thesis: finding.verdict for finding in found}


def one(found, beginning):
    (finding,) = [f for f in found if f.thesis.partition(": ")[2].startswith(beginning)]
    return finding


def latency(bisenet, deeplab, height=512):
    rows = [
        {"network": name, "way": way, "images_per_s": value, "height": height, "size, px": f"{height} x 1024"}
        for name, value in (("BiSeNet-18", bisenet), ("DeepLabV2-101", deeplab))
        for way in ("contiguous", "compiled")
    ]
    return pd.DataFrame(rows)


