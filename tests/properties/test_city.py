"""What holds for every street scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panolib.data.render import city
from panolib.data.render.raster import GROUND, OBJECTS, painting_order
from panolib.labels import CITYSCAPES, VOID

STYLE = st.sampled_from(sorted(city.STYLES))
INDEX = st.integers(0, 10_000)


def labels_of(scene: city.Scene) -> tuple[bytes, bytes, bytes]:
    return scene.semantic.tobytes(), scene.instance.tobytes(), scene.crowd.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    style=STYLE, index=INDEX, seed=st.integers(0, 99), size=st.sampled_from([(32, 32), (64, 128), (51, 97)])
)
def test_labels_agree_with_each_other(style, index, seed, size):
    scene = city.render(style, seed=seed, index=index, height=size[0], width=size[1])
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.semantic.dtype == np.uint8 and scene.instance.dtype == np.int32 and scene.crowd.dtype == bool
    assert set(np.unique(scene.semantic)) <= {*range(CITYSCAPES.n_classes), VOID}
    thing = np.isin(scene.semantic, CITYSCAPES.thing_ids)
    assert np.array_equal(thing, (scene.instance > 0) | scene.crowd)
    assert not (scene.crowd & (scene.instance > 0)).any()
    pairs = np.unique(np.stack([scene.instance[thing], scene.semantic[thing]]), axis=1)
    ids = pairs[0][pairs[0] > 0]
    assert len(ids) == len(np.unique(ids)), "an instance has one class"


@settings(max_examples=8, deadline=None)
@given(style=STYLE, index=INDEX, seed=st.integers(0, 99))
def test_rendering_is_a_function_of_style_seed_and_index(style, index, seed):
    scene = city.render(style, seed=seed, index=index, height=48, width=96)
    again = city.render(city.STYLES[style], seed=seed, index=index, height=48, width=96)
    assert np.array_equal(scene.image, again.image) and labels_of(scene) == labels_of(again)
    for other in ({"seed": seed + 1}, {"index": index + 1}):
        changed = city.render(style, **({"seed": seed, "index": index} | other), height=48, width=96)
        assert not np.array_equal(scene.image, changed.image)


@settings(max_examples=8, deadline=None)
@given(index=INDEX, group=st.sampled_from(["photometry", "texture"]))
def test_light_and_colour_move_no_object(index, group):
    source, target = city.STYLES["synthia"], city.STYLES["cityscapes"]
    swapped = dataclasses.replace(source, **{group: getattr(target, group)})
    options = {"seed": 1, "index": index, "height": 64, "width": 128}
    scene, changed = city.render(source, **options), city.render(swapped, **options)
    assert labels_of(scene) == labels_of(changed)
    assert np.abs(scene.image.astype(int) - changed.image).mean() > 2


@pytest.mark.parametrize("group", ["geometry", "statistics", "shapes"])
def test_geometry_statistics_and_shapes_change_the_labels(group):
    source, target = city.STYLES["synthia"], city.STYLES["cityscapes"]
    swapped = dataclasses.replace(source, **{group: getattr(target, group)})
    options = {"seed": 1, "index": 3, "height": 64, "width": 128}
    assert labels_of(city.render(source, **options)) != labels_of(city.render(swapped, **options))


def test_objects_of_the_target_touch_and_its_pictures_are_grey():
    """Thresholds are below the measured values, 0.67 to 0.82."""
    touching, count, colour = {}, {}, []
    scored = dict(zip(("person", "car", "bicycle"), CITYSCAPES.ids_of(["person", "car", "bicycle"])))
    for index in range(40):
        scene = city.render("cityscapes", seed=3, index=index, height=128, width=256)
        colour.append(scene.image.mean(axis=(0, 1)) / 255)
        for name, class_id in scored.items():
            own = np.where(scene.semantic == class_id, scene.instance, 0)
            touched = set()
            for a, b in ((own[:, 1:], own[:, :-1]), (own[1:], own[:-1])):
                meet = (a != b) & (a > 0) & (b > 0)
                touched |= {*a[meet].tolist(), *b[meet].tolist()}
            touching[name] = touching.get(name, 0) + len(touched)
            count[name] = count.get(name, 0) + len(np.unique(own[own > 0]))
    shares = {name: touching[name] / count[name] for name in scored}
    assert min(shares.values()) > 0.4, shares
    assert np.allclose(np.mean(colour, axis=0), (0.33, 0.36, 0.33), atol=0.06), np.mean(colour, axis=0)


@given(
    st.lists(
        st.tuples(st.sampled_from([GROUND, OBJECTS]), st.floats(1, 50), st.floats(0, 20), st.floats(-9, 9)),
        min_size=1,
        max_size=12,
    )
)
def test_painting_order_is_a_permutation_by_layer_and_far_first(drawn):
    groups = [(layer, near, near + depth, abs(aside)) for layer, near, depth, aside in drawn]
    order = painting_order(groups)
    assert sorted(order) == list(range(len(groups)))
    assert [groups[i][0] for i in order] == sorted(group[0] for group in groups)
    points = [(OBJECTS, near, near, aside) for _, near, _, aside in groups]
    assert [points[i][1] for i in painting_order(points)] == sorted((p[1] for p in points), reverse=True)


def presence(style: city.Style, n: int) -> np.ndarray:
    """bool [n, classes]: which classes each of n scenes shows."""
    scenes = [city.render(style, seed=3, index=i, height=64, width=128) for i in range(n)]
    return np.stack([np.bincount(s.semantic.ravel(), minlength=256)[:19] > 0 for s in scenes])


def test_rare_classes_are_as_rare_as_in_cityscapes():
    """Ranges are three standard errors of 120 scenes wide: what is meant is in `city_styles`."""
    share = dict(zip(CITYSCAPES.classes, presence(city.STYLES["cityscapes"], 120).mean(axis=0)))
    for name, low, high in (
        ("rider", 0.20, 0.46), ("motorcycle", 0.06, 0.27), ("truck", 0.04, 0.22), ("bus", 0.02, 0.20),
        ("train", 0.0, 0.13),
    ):  # fmt: skip
        assert low <= share[name] <= high, (name, share[name])
    assert min(share[name] for name in ("road", "building", "car", "vegetation")) > 0.9
    assert share["person"] > 0.7


def test_rich_streets_can_score_rare_classes_and_mix_finds_frames():
    share = dict(zip(CITYSCAPES.classes, presence(city.rich(city.STYLES["cityscapes"]), 40).mean(axis=0)))
    assert min(share[name] for name in ("truck", "bus", "train", "rider", "motorcycle", "bicycle")) > 0.25
    both = presence(city.STYLES["gta5"], 60)[:, CITYSCAPES.ids_of(["truck", "train"])].all(axis=1)
    assert both.mean() > 0.2


@settings(max_examples=10, deadline=None)
@given(style=STYLE, index=INDEX, size=st.sampled_from([(64, 128), (128, 256)]))
def test_no_instance_is_too_small_to_be_predicted(style, index, size):
    scene = city.render(style, seed=1, index=index, height=size[0], width=size[1])
    areas = np.bincount(scene.instance.ravel())[1:]
    assert (areas[areas > 0] >= city.SMALLEST * scene.instance.size).all()
