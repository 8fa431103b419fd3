"""Something small and very bright must not make tissue look empty; noise is known."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from napari_openmedlab.axons.plan import Settings, make_plan
from napari_openmedlab.axons.source import source_of_array
from napari_openmedlab.axons.survey import Background, survey
from napari_openmedlab.models.blocks import Intensity
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

SHAPE = (64, 160, 160)
SITE = (slice(24, 40), slice(60, 84), slice(100, 124))  # an injection site: 0.6 % of the volume


def volume(tissue_from, site=0.0, noise=5.0):
    """Darkness, textured tissue with axons from a column on, an injection site in it."""
    random = np.random.default_rng(3)
    array = random.normal(100, noise, SHAPE)
    tissue = 200 + uniform_filter(random.normal(0, 400, SHAPE), 5)
    tissue[::9, ::11] += 250  # axons along x
    array[:, :, tissue_from:] += tissue[:, :, tissue_from:]
    array[SITE] += site
    return array.clip(0).astype(np.uint16)


def look(array):
    source = source_of_array(array, name="brain")
    found = survey(source, source.whole, "volume", Monitor())
    return found, Background(source, found)


@pytest.mark.parametrize("site", [0.0, 1500.0, 6000.0, 40000.0])
@pytest.mark.parametrize("tissue_from", [0, 96], ids=["all is tissue", "60 % are dark"])
def test_an_injection_site_does_not_make_tissue_look_empty(tissue_from, site):
    array = volume(tissue_from, site)
    found, background = look(array)
    tissue = array[:, :, tissue_from:]
    assert found.empty_below < np.median(tissue)
    assert not background.looks_empty(tissue[:32, :32, -32:])
    assert 250 < found.intensity.centre < 450
    if tissue_from:
        assert background.looks_empty(array[:32, :32, :32])


@pytest.mark.parametrize("noise", [2.0, 5.0, 20.0])
def test_darkness_around_a_small_piece_of_tissue_is_left_out(noise):
    array = volume(150, noise=noise)
    _, background = look(array)
    assert background.looks_empty(array[:32, :32, :32])
    assert not background.looks_empty(array[:32, :32, -32:])


@pytest.mark.parametrize("sigma", [3.0, 28.0])
def test_noise_is_measured_whatever_was_done_to_the_background(sigma):
    random = np.random.default_rng(1)
    smooth = 300 + 100 * uniform_filter(random.normal(0, 1, SHAPE), 15)
    array = smooth + random.normal(0, sigma, SHAPE)
    for changed in (array.astype(np.uint16), (array - 300).astype(np.int16), array / 65535):
        found, _ = look(changed)
        scale = 65535 if changed.dtype.kind == "f" else 1
        assert found.intensity.noise * scale == pytest.approx(sigma, rel=0.15)
    found, _ = look(np.maximum(array - 300, 0).astype(np.uint16))
    assert 0.4 * sigma < found.intensity.noise < 1.1 * sigma


def test_noise_is_stored_with_the_other_grey_values():
    intensity = Intensity(noise=2.5)
    assert Intensity.from_json(intensity.to_json()) == intensity


def tube(background, dtype=np.uint16, scale=1.0):
    random = np.random.default_rng(5)
    array = random.normal(background, 20, (48, 64, 64))
    array[23:25, 30:33, :] += 300
    return (array * scale).astype(dtype)


def found_in(array):
    engine = load_engine("axon-filter")
    source = source_of_array(array, name="cube")
    plan = make_plan(source, Settings("axon-filter"), engine, Monitor(), timed=False)
    return engine.score(array, plan.context, plan.settings.options, Monitor()) >= 0.5


def test_the_filter_does_not_depend_on_the_unit_of_grey_values():
    raw = found_in(tube(400))
    assert raw[23:25, 30:33].mean() > 0.9
    assert raw.mean() < 0.01
    for scale in (1 / 4095, 1 / 65535, 1000.0):
        scaled = found_in(tube(400, np.float32, scale))
        assert np.count_nonzero(scaled != raw) <= 0.02 * np.count_nonzero(raw)


@pytest.mark.parametrize("clipped", [False, True])
def test_volumes_whose_background_was_taken_off_are_not_full_of_axons(clipped):
    array = tube(0, np.int16)
    found = found_in(np.maximum(array, 0).astype(np.uint16) if clipped else array)
    assert found[23:25, 30:33].mean() > 0.9
    found[20:28, 27:36] = False  # the tube and its rim
    assert found.mean() < 1e-3
