import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.library_features import FolderFeatures, write_arrays
from napari_openmedlab.cohort.library_files import pack, unpack
from napari_openmedlab.cohort.marks import (
    mark_from_mask,
    mark_from_points,
    marks_from_labels,
    slab_landmarks,
)
from napari_openmedlab.errors import PromptError, ReadError, WriteError
from napari_openmedlab.geometry.volume import Geometry, Volume


def scan(seed=0, affine=None, name="Doe^John", modality="CT", shape=(16, 20, 24)):
    rng = np.random.default_rng(seed)
    array = rng.integers(-1000, 200, shape).astype(np.int16)
    affine = (
        affine
        if affine is not None
        else np.array([[0, 0, 2, -20], [0, 2, 0, -30], [-5, 0, 0, 100], [0, 0, 0, 1.0]])
    )
    return Volume(array, Geometry(array.shape, affine), name=name, modality=modality)


def organ(volume, low=(4, 5, 6), high=(12, 14, 18)):
    mask = np.zeros(volume.geometry.shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def marked(volume, name="liver", **where):
    return mark_from_mask(name, organ(volume, **where), volume.geometry)


@pytest.fixture
def library(tmp_path):
    made = Library.create(tmp_path / "library", "Abdomen")
    for seed in range(2):
        volume = scan(seed)
        made.add(volume, [marked(volume), marked(volume, "spleen", low=(5, 6, 8))])
    return made


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_template_comes_back_as_it_was_added(library):
    again = Library.open(library.folder)
    assert again.name == "Abdomen"
    assert again.structures == {"liver": 2, "spleen": 2}
    volume = scan(0)
    entry = next(e for e in again.entries if (again.load(e.id).array == volume.array).all())
    loaded = again.load(entry.id)
    np.testing.assert_array_equal(loaded.geometry.affine, volume.geometry.affine)
    assert loaded.array.dtype == np.int16
    assert entry.structure("LIVER").landmarks.points == marked(volume).landmarks.points
    assert (again.mask(entry.id, "liver").to_full(loaded.geometry.shape) == organ(volume)).all()
    assert again.view(entry.id).read_bytes().startswith(b"\x89PNG")
    template = next(t for t in again.templates() if t.id == entry.id)
    assert template.content.startswith(template.id)
    assert template.load().geometry.same_grid(volume.geometry)


def test_no_name_of_the_scan_or_its_file_is_stored(library):
    for path, content in tree(library.folder).items():
        assert b"Doe" not in content, path
        assert "Doe" not in str(path)
    assert [e.title for e in library.entries] == ["template 1", "template 2"]


def test_the_same_scan_again_adds_to_its_template_and_replaces_what_has_the_name(library):
    volume = scan(0)
    other = mark_from_points("Liver", marked(volume, high=(13, 15, 19)).landmarks.points,
                             volume.geometry)  # fmt: skip
    entry = library.add(volume, [other, marked(volume, "gut")]).entry
    assert len(library.entries) == 2
    assert [s.name for s in entry.structures] == ["spleen", "Liver", "gut"]
    stored = Library.open(library.folder).entry(entry.id).structure("liver")
    assert (stored.origin, stored.mask) == ("points", "")


def test_templates_can_be_chosen_by_structure(library):
    volume = scan(3)
    library.add(volume, [marked(volume, "liver")])
    assert len(library.templates()) == 3
    chosen = library.templates(["SPLEEN"])
    assert [[s.name for s in t.structures] for t in chosen] == [["spleen"], ["spleen"]]
    with pytest.raises(PromptError, match=r"no template of Abdomen has heart; it has liver"):
        library.templates(["heart"])


def test_a_kept_mask_gives_sub_patches_as_medlsam_cuts_them(library):
    names = [s.name for s in library.templates(["liver"], slab_interval=2)[0].structures]
    assert names == ["liver", *(f"liver [{n}/6]" for n in range(1, 7))]  # 35 mm: 12 slices of 3 mm
    volume = scan(9)
    library.add(volume, [mark_from_points("liver", marked(volume).landmarks.points,
                                          volume.geometry)])  # fmt: skip
    assert len(library.templates(["liver"], slab_interval=2)[0].structures) == 1
    with pytest.raises(PromptError, match="marked without a mask"):
        slab_landmarks(mark_from_points("x", marked(volume).landmarks.points, volume.geometry),
                       volume.geometry, 2)  # fmt: skip


def test_rename_and_remove(library):
    first, second = library.entries
    library.rename(first.id, "thin woman")
    assert library.rename_structure("liver", "hepar") == 2
    library.remove_structure("thin woman", "spleen")
    library.remove(second.id)
    again = Library.open(library.folder)
    assert [e.title for e in again.entries] == ["thin woman"]
    assert again.structures == {"hepar": 1}
    assert not (library.folder / "templates" / second.id).exists()
    with pytest.raises(PromptError, match="only structure"):
        again.remove_structure(first.id, "hepar")
    with pytest.raises(PromptError, match="no structure 'gut'"):
        again.mask(first.id, "gut")
    with pytest.raises(PromptError, match="there is no template called 'nobody'"):
        again.entry("nobody")


def test_merging_takes_what_is_new_and_keeps_what_is_here(library, tmp_path):
    other = Library.create(tmp_path / "other")
    same, new = scan(0), scan(5)
    other.add(same, [marked(same, low=(3, 5, 6)), marked(same, "gut")])
    other.add(new, [marked(new)])
    other.features(other.entries[1].id).put("engine@1", {"a": np.arange(3)})
    done = library.merge(other)
    assert len(done.added) == len(done.extended) == len(done.kept) == 1
    again = Library.open(library.folder)
    assert again.structures == {"gut": 1, "liver": 3, "spleen": 2}
    assert again.mask(done.extended[0], "gut").count
    assert again.features(done.added[0]).keys() == ("engine@1",)
    points = again.entry(done.extended[0]).structure("liver").landmarks.points
    assert points == marked(same).landmarks.points
    assert library.merge(other).added == ()


def test_a_scan_can_stay_in_its_place_or_be_left_out(tmp_path):
    import nibabel

    from napari_openmedlab.io.api import read

    path = tmp_path / "somebody.nii.gz"
    nibabel.Nifti1Image(scan().array.transpose(2, 1, 0), np.diag([-2.0, -2, -5, 1])).to_filename(
        path
    )
    volume = read(path)
    library = Library.create(tmp_path / "lib")
    entry = library.add(volume, [marked(volume)], keep="path").entry
    assert Library.open(library.folder).load(entry.id).array.shape == volume.array.shape
    packed = unpack(pack(library, tmp_path / "shared"), tmp_path / "theirs")
    assert b"somebody" not in b"".join(tree(packed.folder).values())
    assert packed.templates()[0].load is None
    nibabel.Nifti1Image(scan(1).array.transpose(2, 1, 0), np.diag([-2.0, -2, -5, 1])).to_filename(
        path
    )
    with pytest.raises(ReadError, match="no longer the scan that template 1 was marked on"):
        library.load(entry.id)
    path.unlink()
    with pytest.raises(ReadError, match="can't be read in its place"):
        library.load(entry.id)
    none = Library.create(tmp_path / "none")
    entry = none.add(scan(), [marked(scan())], keep="none").entry
    assert none.template(entry.id).load is None
    with pytest.raises(ReadError, match="not read from a file"):
        none.add(scan(1), [marked(scan(1))], keep="path")
    assert len(Library.open(none.folder).entries) == 1


def test_what_engines_keep_stays_beside_the_template_and_old_states_go(library):
    features = library.templates()[0].features
    features.put("net:liver@old", {"e": np.arange(3.0)})
    features.put("net:spleen@old", {"e": np.arange(3.0)})
    features.put("net:liver@new", {"e": np.arange(4.0)})
    assert set(features.keys()) == {"net:liver@new", "net:spleen@old"}
    features.put("net:liver@new", {"e": np.zeros(1)})  # never changed
    np.testing.assert_array_equal(features.get("net:liver@new")["e"], np.arange(4.0))
    assert features.get("net:liver@old") is None
    odd = "x" * 400 + "/../:*@" + "y" * 400
    features.put(odd, {"e": np.arange(2)})
    np.testing.assert_array_equal(features.get(odd)["e"], np.arange(2))
    assert library.drop_features(lambda key: key.startswith("net:spleen")) > 0
    assert features.get("net:spleen@old") is None


def test_kept_features_are_numbers_only_and_damage_counts_as_absent(tmp_path):
    features = FolderFeatures(tmp_path / "f")
    with pytest.raises(WriteError, match="holds objects"):
        write_arrays(tmp_path / "a.npz", {"a": np.array([{}], dtype=object)})
    features.put("k", {"a": np.arange(3)})
    file = next((tmp_path / "f").glob("*.npz"))
    file.write_bytes(file.read_bytes()[:-20])
    assert features.get("k") is None
    features.put("k", {"a": np.arange(3)})
    np.testing.assert_array_equal(features.get("k")["a"], np.arange(3))
    np.savez(file, a=np.array([{}], dtype=object))
    assert features.get("k") is None


def test_packed_and_unpacked_it_is_the_same(library, tmp_path):
    library.features(library.entries[0].id).put("e@1", {"a": np.arange(3)})
    path = pack(library, tmp_path / "shared")
    assert path.name == "shared.omltemplates"
    there = unpack(path, tmp_path / "there")
    assert tree(there.folder).keys() == tree(library.folder).keys()
    assert there.structures == library.structures
    slim = unpack(pack(library, tmp_path / "slim", images=False, features=False), tmp_path / "s")
    assert {e.keep for e in slim.entries} == {"none"}
    assert not [p for p in tree(slim.folder) if p.name == "scan.npz" or p.suffix == ".png"]


def test_a_zip_that_is_no_library_is_refused_and_leaves_nothing(library, tmp_path):
    import zipfile

    path = pack(library, tmp_path / "shared")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for content, sentence in [(None, "no packed template library"), ("../evil.npz", "no part of"),
                              ("templates/x/y.py", "no part of")]:  # fmt: skip
        if content:
            path.write_bytes(whole)
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(content, "x")
        with pytest.raises(ReadError, match=sentence):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".openmedlab*"))
    with pytest.raises(WriteError, match="not empty"):
        unpack(path, library.folder)
    with pytest.raises(ReadError, match="unpack a packed library"):
        Library.open(path)


def test_names_must_differ_and_be_there(library):
    volume = scan(4)
    before = tree(library.folder)
    with pytest.raises(PromptError, match="two structures of one template are called"):
        library.add(volume, [marked(volume), marked(volume, "LIVER")])
    with pytest.raises(PromptError, match="mark at least one"):
        library.add(volume, [])
    with pytest.raises(PromptError, match="needs a name"):
        marked(volume, "  ")
    with pytest.raises(PromptError, match="two structures"):
        library.rename_structure("liver", "Spleen")
    with pytest.raises(PromptError, match="there are 5: place"):
        mark_from_points("x", marked(volume).landmarks.points[:5], volume.geometry)
    with pytest.raises(PromptError, match="made on this scan"):
        mark_from_mask("x", np.ones((2, 2, 2), bool), volume.geometry)
    assert tree(library.folder) == before


def test_labels_become_structures_in_one_step():
    volume = scan()
    labels = organ(volume).astype(np.uint8) * 3
    labels[0, 0, 0] = 7
    marks = marks_from_labels(labels, {3: "liver", 7: "dot", 9: "absent"}, volume.geometry)
    assert [m.name for m in marks] == ["liver", "dot"]
    assert marks[0].box(volume.geometry).shape == (8, 9, 12)
    with pytest.raises(PromptError, match="none of the values"):
        marks_from_labels(labels, {1: "x"}, volume.geometry)


def test_another_modality_and_odd_orientations_are_told_but_kept(library):
    volume = scan(6, modality="MR")
    notes = library.add(volume, [marked(volume)]).notes
    assert any("is MR, the other templates are CT" in note for note in notes)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    tilted = scan(7, turn @ scan().geometry.affine)
    assert any("29 degrees oblique" in n for n in library.add(tilted, [marked(tilted)]).notes)
    plain = scan(8)
    lost = replace(plain, geometry=replace(plain.geometry, frame="image"))
    assert any("how the patient lay" in n for n in library.add(lost, [marked(lost)]).notes)


@pytest.mark.parametrize("file", ["library.json", "template.json"])
def test_a_newer_version_is_refused_with_a_sentence(library, file):
    path = next(library.folder.rglob(file))
    content = json.loads(path.read_text()) | {"version": 99}
    path.write_text(json.dumps(content))
    if file == "library.json":
        with pytest.raises(ReadError, match="version 99, this program knows up to 1: update"):
            Library.open(library.folder)
    else:
        again = Library.open(library.folder)
        assert len(again.entries) == 1
        assert "version 99" in again.problems[0]


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"format": "napari-openmedlab template", "version": 1}']
)
def test_one_damaged_template_costs_only_itself(library, damage):
    path = next(library.folder.rglob("template.json"))
    path.write_text(damage)
    again = Library.open(library.folder)
    assert len(again.entries) == len(again.templates()) == 1
    assert len(again.problems) == 1
    assert path.read_text() == damage
    (next(library.folder.rglob("scan.npz"))).write_bytes(b"")
    for entry in again.entries:
        if not (again.folder / "templates" / entry.id / "scan.npz").stat().st_size:
            with pytest.raises(ReadError, match="missing or damaged"):
                again.load(entry.id)


def test_a_full_disk_leaves_the_library_as_it_was(library, monkeypatch):
    before = tree(library.folder)
    volume = scan(4)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for change in (
        lambda: library.add(volume, [marked(volume)]),
        lambda: library.add(scan(0), [marked(scan(0), "gut")]),
        lambda: library.rename(library.entries[0].id, "x"),
        lambda: pack(library, library.folder.parent / "p"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(WriteError, match="the disk is full"):
                change()
        assert tree(library.folder) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        library.features(library.entries[0].id).put("k", {"a": np.arange(3)})  # no reason to fail
    assert [e.title for e in library.entries] == ["template 1", "template 2"]
    assert Library.open(library.folder).structures == library.structures


def test_a_library_is_made_only_in_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="is not empty"):
        Library.open_or_create(tmp_path)
    with pytest.raises(ReadError, match="is no template library"):
        Library.open(tmp_path)
    made = Library.open_or_create(tmp_path / "new")
    assert Library.open_or_create(tmp_path / "new").name == made.name
    shutil.rmtree(tmp_path / "new")
