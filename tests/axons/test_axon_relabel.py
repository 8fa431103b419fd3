"""Another threshold, cut short and gone on with: labels are of one threshold or not used."""

import json
import shutil

import numpy as np
import pytest
import zarr
from test_axon_runs import StopAt, digest, ran, smooth, source, volume  # noqa: F401  (fixtures)

from napari_openmedlab.axons.products import density_of, traced
from napari_openmedlab.axons.source import source_of_array
from napari_openmedlab.axons.store import Results, label_level, relabel
from napari_openmedlab.errors import Cancelled, ReadError
from napari_openmedlab.models.contract import Monitor


class StopLabels(Monitor):
    """Cancels when a number of blocks has its new labels, or of chunks its coarser level."""

    def __init__(self, blocks, text="labels at"):
        super().__init__()
        self.blocks, self.text = blocks, text

    def step(self, done=0, total=0, text=""):
        if text.startswith(self.text) and done >= self.blocks:
            self.cancel()
        super().step(done, total, text)


@pytest.fixture
def long(volume):  # noqa: F811
    """A volume with one coarser level."""
    return source_of_array(np.tile(volume, (1, 1, 5)), name="long", spacing=(2.0, 0.5, 0.5))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folders of finished runs of the long volume, by threshold: made once, then copied."""
    return {}, tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(stored, long):
    """Return a function that puts a finished run of the long volume into a folder."""
    made, place = stored

    def copy(folder, threshold=0.5):
        if threshold not in made:
            made[threshold] = place / str(threshold)
            ran(long, made[threshold], threshold=threshold)
        shutil.copytree(made[threshold], folder)

    return copy


def journal(folder):
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def cut_short(folder, threshold, blocks=9):
    with pytest.raises(Cancelled):
        relabel(folder, threshold, StopLabels(blocks))


def check_labels(folder, threshold):
    """Every level of the labels is of this threshold, and the run is complete."""
    results = Results.open(folder)
    assert results.threshold == threshold
    assert results.complete
    assert results.relabelling is None
    level = label_level(threshold)
    np.testing.assert_array_equal(results.labels[:], results.probability[:] >= level)
    coarse = zarr.open_group(str(results.image), mode="r")
    datasets = coarse["labels/axons"].attrs["multiscales"][0]["datasets"]
    assert [d["path"] for d in datasets] == ["0", "1"]
    np.testing.assert_array_equal(coarse["labels/axons/1"][:], coarse["1"][:] >= level)


@pytest.mark.parametrize("way", ["relabel", "run"])
@pytest.mark.parametrize(("first", "then"), [(0.5, 0.8), (0.8, 0.5)])
def test_a_relabel_cut_short_is_finished_either_way(long, finished, tmp_path, first, then, way):
    out = tmp_path / "out"
    finished(out, first)
    finished(tmp_path / "one go", then)
    cut_short(out, then)
    results = Results.open(out)
    assert not results.complete
    assert results.relabelling == then
    assert len(np.unique(results.labels[:] != (results.probability[:] >= label_level(then)))) == 2
    if way == "relabel":
        relabel(out, then, Monitor())
    else:
        ran(long, out, threshold=then)
    check_labels(out, then)
    assert digest(out) == digest(tmp_path / "one go")
    length = len(journal(out))
    ran(long, out, threshold=then)
    assert len(journal(out)) == length  # nothing is done twice


def test_there_and_back_again_is_not_done_until_it_is(long, finished, tmp_path):
    out = tmp_path / "out"
    finished(out)
    relabel(out, 0.8, Monitor())
    cut_short(out, 0.5)
    assert not Results.open(out).complete
    ran(long, out)
    check_labels(out, 0.5)


def test_nothing_is_exported_from_labels_of_two_thresholds(source, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    _, results = ran(source, out)
    cut_short(out, 0.8)
    for opened in (results, Results.open(out)):  # a panel holds results from before
        with pytest.raises(ReadError, match=r"partly.*threshold of 0\.8.*again"):
            traced(opened, Monitor())
        for kind in ("length", "voxels"):
            with pytest.raises(ReadError, match=r"partly"):
                density_of(opened, 50.0, kind, Monitor())
    relabel(out, 0.5, Monitor())
    assert len(traced(Results.open(out), Monitor()).trees)


def test_cut_short_at_the_coarser_levels_only_these_are_made_anew(long, finished, tmp_path):
    out = tmp_path / "out"
    finished(out)
    with pytest.raises(Cancelled):
        relabel(out, 0.8, StopLabels(1, "making coarser"))
    results = Results.open(out)
    assert results.relabelling is None
    assert not results.complete
    density_of(results, 50.0, "voxels", Monitor())  # made of the finest level, which is whole
    ran(long, out, threshold=0.8)
    check_labels(out, 0.8)
    assert sum("relabelled" in line for line in journal(out)) == 1


def test_an_unfinished_run_takes_another_threshold_and_goes_on(long, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        ran(long, out, StopAt(20))
    cut_short(out, 0.8)
    assert Results.open(out).relabelling == 0.8
    ran(long, out, threshold=0.8)
    check_labels(out, 0.8)
    again = tmp_path / "again"
    with pytest.raises(Cancelled):
        ran(long, again, StopAt(20))
    relabel(again, 0.8, Monitor())
    assert not Results.open(again).complete
    ran(long, again, threshold=0.8)
    assert digest(again) == digest(out)


def test_a_crash_between_journal_and_settings_is_mended(long, finished, tmp_path):
    out = tmp_path / "out"
    finished(out)
    with (out / "journal.jsonl").open("a") as file:
        file.write('{"relabel": 0.8}\n')  # and run.json still says 0.5
    ran(long, out)
    check_labels(out, 0.5)


def test_journals_from_before_relabels_were_noted_still_work(long, finished, tmp_path):
    out = tmp_path / "out"
    finished(out)
    relabel(out, 0.8, Monitor())
    old = [line for line in journal(out) if not {"relabel", "relabelled"} & set(line)]
    text = "".join(json.dumps(line) + "\n" for line in old)
    (out / "journal.jsonl").write_text(text)
    check_labels(out, 0.8)
    # As an earlier version left it when a relabel to 0.5 was cut short.
    settings = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**settings, "threshold": 0.5}))
    assert Results.open(out).relabelling == 0.5
    with pytest.raises(ReadError, match="partly"):
        traced(Results.open(out), Monitor())
    ran(long, out)
    check_labels(out, 0.5)
