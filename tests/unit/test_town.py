"""The rendered town: written and read like any city, its streets, and the shadows of its sun."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from panolib.config import ProfileError, from_mapping
from panolib.data.readers import GTA5, Cityscapes, Synthia
from panolib.data.readers.city import CityData, CitySources, EmbeddedCity
from panolib.data.render import city
from panolib.data.render.city_streets import Axis
from panolib.data.render.raster import Shade

SIZE = {"height": 64, "width": 128, "seed": 5}


def test_a_town_is_written_and_read_like_any_city(tmp_path):
    options = {"progress": False, **SIZE}
    city.write_city(tmp_path / "synthia", "synthia", split="all", n_images=2, **options)
    city.write_city(tmp_path / "gta5", "gta5", split="all", n_images=2, **options)
    for split in ("val", "val_rare"):
        city.write_city(tmp_path / "c", "cityscapes", split=split, n_images=2, **options)
    image = Synthia(tmp_path / "synthia", "all")[1].image
    assert np.array_equal(image, city.render("synthia", index=1, **SIZE).image)
    semantic = GTA5(tmp_path / "gta5", "train", n_val=0)[1].semantic
    assert np.array_equal(semantic, city.render("gta5", index=1, **SIZE).semantic)
    rare = city.rich(city.STYLES["cityscapes"])
    for split, style, first in (("val", city.STYLES["cityscapes"], 1_000_000), ("val_rare", rare, 2_000_000)):
        for i, sample in enumerate(Cityscapes(tmp_path / "c", split)):
            scene = city.render(style, index=first + i, **SIZE)
            assert np.array_equal(sample.image, scene.image)
            assert np.array_equal(sample.semantic, scene.semantic)
            assert np.array_equal(sample.instance > 0, scene.instance > 0)
            assert np.array_equal(sample.crowd, scene.crowd)


def test_the_rare_split_has_a_fingerprint_of_its_own():
    val, rare = (
        city.fingerprint("cityscapes", split=split, n_images=3, **SIZE) for split in ("val", "val_rare")
    )
    assert val["style_parameters"] != rare["style_parameters"]


def sources(root: Path, embedded: EmbeddedCity) -> CitySources:
    folders = {"synthia": "s", "gta5": "g", "cityscapes": "c"}
    held_out = {"n_val_synthia": 1, "n_val_gta5": 1, "train_size": None, "mix_requires": ("truck",)}
    return CitySources(CityData(**folders, embedded=embedded, **held_out), root)


def test_settings_choose_the_rare_split(tmp_path):
    embedded = EmbeddedCity(n_synthia=2, n_gta5=2, n_train=1, n_val=1, height=32, width=64, seed=0)
    data = sources(tmp_path, dataclasses.replace(embedded, n_val_rare=2))
    data.prepare(progress=False)
    assert len(data.open("cityscapes/val_rare")) == 2 and len(data.open("cityscapes/val")) == 1
    other = sources(tmp_path, dataclasses.replace(embedded, n_val_rare=3))
    assert data.fingerprint("gta5/train") == other.fingerprint("gta5/train")
    with pytest.raises(ValueError, match="n_images"):
        other.open("cityscapes/val_rare")


def test_settings_of_the_former_streets_are_refused():
    embedded = {"n_synthia": 2, "n_gta5": 2, "n_train": 1, "n_val": 1, "height": 32, "width": 64, "seed": 0}
    with pytest.raises(ProfileError, match="streets: unknown key, found with value 'town'"):
        from_mapping(EmbeddedCity, embedded | {"streets": "town"}, where="my.yaml")


def test_an_axis_keeps_lengths_and_turns_by_its_angle():
    bend = {"straight": 5.0, "curve": -0.05, "angle": 0.8}
    axis = Axis(128, 64, 100, 64, 32, 1.5, x=3.0, z=2.0, heading=0.4, **bend)
    places = np.array([axis.place(0.0, s) for s in np.arange(0, 60, 0.01)])
    assert np.allclose(places[0], (3.0, 2.0))
    assert np.allclose(np.hypot(*np.diff(places, axis=0).T), 0.01, atol=1e-6)
    assert axis.direction(0.0) == pytest.approx(0.4) and axis.direction(60.0) == pytest.approx(-0.4)
    assert math.atan2(*(places[-1] - places[-2])) == pytest.approx(-0.4)
    for s in (2.0, 12.0, 40.0):  # u is measured across
        (x0, z0), (x1, z1), turn = axis.place(0.0, s), axis.place(4.0, s), axis.direction(s)
        assert (x1 - x0, z1 - z0) == pytest.approx((4 * math.cos(turn), -4 * math.sin(turn)))


def test_a_post_throws_its_shadow_where_the_sun_does_not_reach():
    shade = Shade((0.5, -1.0))  # 2 m of height reach 1 m to the right and 2 m towards the camera
    shade.cast([(-0.1, 10.0), (0.1, 10.0), (0.1, 10.2), (-0.1, 10.2)], 0.0, 2.0)
    tall, low = (cells.reshape(800, 800) for cells in shade.maps)

    def at(x: float, z: float) -> float:
        return low[round(z * 10), round(x * 10) + 400]

    assert tall.max() == 0.0
    assert min(at(0.0, 10.1), at(0.5, 9.1), at(1.0, 8.2)) > 0.5
    assert max(at(-0.5, 9.1), at(0.5, 11.1), at(1.5, 7.1)) < 0.05


def test_the_sun_darkens_only_what_lies_in_the_shade():
    style = city.STYLES["cityscapes"]
    overcast, sunny = style.photometry
    assert overcast.elevation is None and sunny.elevation is not None
    even = dataclasses.replace(sunny, beam=(0.0, 0.0))
    shares = []
    for index in range(6):
        shaded, bright = (
            city.render(dataclasses.replace(style, photometry=(look,)), index=index, **SIZE).image.astype(int)
            for look in (sunny, even)
        )
        shares.append(((bright - shaded).mean(axis=2) > 8).mean())
        assert (shaded <= bright + 1).mean() > 0.99
    assert min(shares) > 0.02 and max(shares) < 0.98
