"""The general plots take small tables, one seed, gaps and single classes, and say what they show."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from panolib.inference.pictures import panoptic_picture
from panolib.labels import CITYSCAPES
from panolib.metrics.panoptic import PanopticStats
from panolib.report import pictures, plots, words

mpl.use("Agg")


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield
    mpl.pyplot.close("all")


def drawn(fig) -> str:
    """All text of a figure, drawn once so that its layout is computed."""
    fig.canvas.draw()
    found = fig.findobj(mpl.text.Text)
    return "\n".join(text.get_text() for text in found if text.get_visible())


def rows(seeds=(0, 1, 2), rungs=("source_only", "oracle"), metrics=("miou_19",), subsets=("",), value=0.5):
    return pd.DataFrame([
        {"rung": rung, "seed": seed, "metric": metric, "subset": subset, "run": f"{rung}-{seed}",
         "value": value + 0.01 * seed}
        for rung in rungs for seed in seeds for metric in metrics for subset in subsets
    ])  # fmt: skip


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_ladder_names_methods_metrics_and_seeds(seeds):
    text = drawn(plots.ladder(rows(seeds, metrics=("miou_19", "pq_16"))))
    assert all(word in text for word in ("source only", "oracle", "mIoU, 19 classes, %", "PQ, 16 classes, %"))
    assert f"n = {len(seeds)} seed" in text


def test_ladder_says_which_methods_have_fewer_seeds():
    table = rows((0, 1, 2))
    text = drawn(plots.ladder(table[(table["rung"] != "oracle") | (table["seed"] == 0)]))
    assert "n = 3 seeds (oracle 1)" in text


def test_ladder_with_a_gap():
    table = rows(metrics=("miou_19", "pq"))
    table = table[~((table["rung"] == "oracle") & (table["metric"] == "pq"))]
    table.loc[table["metric"] == "miou_19", "value"] = np.nan
    assert "oracle" in drawn(plots.ladder(table))


@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_points_over_numbers_and_over_names(seeds, numeric):
    table = rows(seeds).assign(share=lambda t: t["rung"].map({"source_only": 0.0, "oracle": 0.5}))
    text = drawn(plots.points(table, "share" if numeric else "rung", "value", hue="metric", ylabel="mIoU, %"))
    assert "mIoU, %" in text and "mIoU, 19 classes" in text
    assert numeric or ("source only" in text and "oracle" in text)


def test_points_with_an_interval_that_does_not_exist():
    table = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.7], "low": [0.4, np.nan], "high": [0.6, np.nan]})
    fig = plots.points(table, "x", "y", interval=("low", "high"), xlabel="weight")
    assert "weight" in drawn(fig)


@pytest.mark.parametrize("classes", [("car",), ("car", "bus", "train")])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_class_bars_of_some_classes(seeds, classes):
    table = rows(seeds, metrics=("iou",), subsets=("car", "bus"))  # no train
    text = drawn(plots.class_bars(table, classes))
    assert all(name in text for name in (*classes, "source only", "oracle", f"n = {len(seeds)} seed"))


def test_curves_have_one_name_for_the_seeds_of_a_method():
    table = pd.DataFrame({
        "rung": ["abn"] * 4, "run": ["a", "a", "b", "b"], "seed": [0, 0, 1, 1], "iteration": [1, 2, 1, 2],
        "loss": [1.0, np.nan, 2.0, 1.0], "pseudo": [0.1, 0.2, 0.3, 0.4],
    })  # fmt: skip
    fig = plots.curves(table, ["loss", "pseudo"], hue="rung", window=2, labels=["loss", "pixels, %"])
    assert drawn(fig).count("ABN") == 1 and "pixels, %" in drawn(fig)
    assert len(fig.axes[0].lines) == 2


@pytest.mark.parametrize("log", [True, False])
def test_cost_and_quality_names_every_point(log):
    table = pd.DataFrame({"method": ["fcd", "light"], "ms": [5.0, 60.0], "miou": [0.4, np.nan]})
    text = drawn(plots.cost_quality(table, "ms", "miou", name="method", xlabel="ms", ylabel="%", log=log))
    assert "adversarial, FCD" in text and "adversarial, light" in text and "10⁰" not in text


def test_forest_shows_claims_of_one_unit():
    table = pd.DataFrame({
        "unit": ["points", "points", "ratio"], "difference": [1.0, np.nan, 3.0], "low": [np.nan, np.nan, 2.0],
        "high": [np.nan, np.nan, 4.0], "verdict": ["undecided", "not testable here", "holds"],
        "claim": ["one seed decides " + 20 * "nearly " + "nothing", "missing", "times"],
    })  # fmt: skip
    text, short = drawn(fig := plots.forest(table)), plots.forest(table.assign(claim="short"))
    assert table["claim"][0] in text.replace("\n", " "), "the whole sentence, in lines"
    assert fig.get_figheight() > short.get_figheight(), "with room for them"
    assert "missing" not in text and "times" not in text and "undecided" in text


def test_the_same_figure_is_the_same_file(tmp_path):
    study = type("Study", (), {"figures": tmp_path / "figures"})
    first, second = (plots.save_figure(plots.ladder(rows()), study, "a").read_bytes() for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


# --- pictures -----------------------------------------------------------------------------------------------


def test_outlines_separate_instances_of_one_class():
    car = CITYSCAPES.classes.index("car")
    semantic = np.full((6, 12), car)
    instances = np.repeat([[1, 2]], 6, axis=1).repeat(6, axis=0).reshape(6, 12)
    picture = pictures.label_picture(semantic, CITYSCAPES, instances)
    assert picture.shape == (6, 12, 3) and picture.dtype == np.uint8
    assert (picture[3, 5] == 255).all() and (picture[3, 1] == CITYSCAPES.colours[car]).all()


def test_instances_have_colours_and_none_is_black():
    picture = pictures.instance_picture(np.array([[0, 0, 1, 1, 1, 2, 2, 2]]).repeat(6, axis=0))
    assert (picture[:, 0] == 0).all() and (picture[3, 3] != picture[3, 6]).any()
    assert (pictures.instance_picture(np.zeros((4, 4), int)) == 0).all()


def test_maps_show_what_is_not_a_number_in_white():
    picture = pictures.map_picture(np.array([[0.0, 1.0, 2.0, np.nan]]))
    assert (picture[0, 3] == 255).all() and (picture[0, 1] == picture[0, 2]).all()


def test_grid_with_legend_names_rows_headings_and_classes():
    picture = np.zeros((8, 16, 3), np.uint8)
    rows = {"image 1": [picture, picture], "image 2": [picture]}
    text = drawn(pictures.picture_grid(rows, headings=["truth", "ours"], label_set=CITYSCAPES))
    assert all(name in text for name in ("image 1", "image 2", "truth", "ours", "bicycle", "void"))


def test_classes_are_named_once_on_their_largest_part_in_every_picture():
    bus, train = CITYSCAPES.ids_of(["bus", "train"])
    semantic = np.full((20, 40), CITYSCAPES.ids_of(["road"])[0])
    semantic[5:15, 4:8], semantic[5:15, 10:34], semantic[0, 0] = bus, bus, train  # a train of one pixel
    fig = pictures.picture_grid({"": [CITYSCAPES.colourise(semantic), np.zeros((20, 40, 3), np.uint8)]})
    pictures.name_classes(fig, CITYSCAPES, ["bus", "train"])
    first, nothing = fig.axes
    assert [text.get_text() for text in first.texts] == ["bus"] and not nothing.texts
    factor = first.images[0].get_array().shape[1] / 40  # small pictures are shown larger
    assert np.allclose(first.texts[0].get_position(), (factor * 22, factor * 10), atol=factor)


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [("self_trained", "self-trained"), ("miou_19", "mIoU, 19 classes"), ("pq_plus_16", "PQ+, 16 classes"),
     ("sq", "SQ"), ("unknown thing", "unknown thing"), (0.25, "0.25"), (None, "None")],
)  # fmt: skip
def test_reader_is_told(name, expected):
    assert words.word(name) == expected


def test_colours_of_rungs_are_fixed_and_no_other_name_has_them():
    found = words.colours(["oracle", "first", "abn", "second"])
    assert found["oracle"] == words.COLOURS["oracle"] and found["abn"] == words.COLOURS["abn"]
    assert len(set(found.values())) == 4
    many = words.colours([f"method {i}" for i in range(7)])
    assert len(set(many.values())) == 7


def test_readable_renames_index_columns_and_texts():
    table = pd.DataFrame({"miou_19": ["x"], "method": ["fcd"]}, index=pd.Index(["oracle"], name="rung"))
    found = words.readable(table)
    assert list(found.columns) == ["mIoU, 19 classes", "method"] and list(found.index) == ["oracle"]
    assert found["method"].tolist() == ["adversarial, FCD"]


def test_a_recorded_picture_gives_its_segments_back():
    road, car, bus = CITYSCAPES.ids_of(("road", "car", "bus"))
    panoptic_map = np.full((12, 24), 1)
    panoptic_map[2:8, 2:10], panoptic_map[2:8, 10:16], panoptic_map[:, 20:] = 2, 3, 0
    panoptic_map[8:11, 4:12] = 4
    categories = {1: road, 2: car, 3: car, 4: bus}
    segments = [{"id": k, "category_id": c, "isthing": c != road} for k, c in categories.items()]
    picture = panoptic_picture(panoptic_map, segments, CITYSCAPES)
    found, listed = pictures.recorded_segments(picture, CITYSCAPES)
    assert sorted(segment["category_id"] for segment in listed) == sorted(categories.values())
    assert ((found == 0) == (panoptic_map == 0)).all()
    stats = PanopticStats(CITYSCAPES)
    stats.update(panoptic_map, segments, found, listed)
    assert stats.result((road, car, bus)).rq.tolist() == [1, 1, 1]
    assert stats.result((road, car, bus)).sq.min() > 0.8  # white lines may go to the neighbour
    nothing, none = pictures.recorded_segments(np.zeros((2, 3, 3), np.uint8), CITYSCAPES)
    assert (nothing == 0).all() and none == []


def test_outlines_lie_between_colours(tmp_path):
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 4:] = (0, 0, 70)
    mpl.image.imsave(tmp_path / "a.png", picture)
    record = SimpleNamespace(samples={"a": tmp_path / "a.png"}, run=SimpleNamespace(name="run"))
    outlined = pictures.recorded_picture(record, "a", outlined=True)
    assert outlined.shape == (8, 16, 3) and (outlined[:, 7:9] == 255).all()
    assert (outlined[:, :7] == 0).all() and (outlined[:, 9:] == (0, 0, 70)).all()
    with pytest.raises(KeyError, match=r"no picture 'b'; it has \['a'\]"):
        pictures.recorded_picture(record, "b")
