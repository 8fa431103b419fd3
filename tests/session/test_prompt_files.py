import json

import numpy as np
import pytest
from blocks import two_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_openmedlab.errors import PromptError, ReadError, WriteError
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.geometry.prompts import BoxPrompt, MaskPrompt, PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.session.prompt_files import NamedPrompts, read_prompts, write_prompts


@pytest.fixture
def write_json(tmp_path):
    def write(content):
        path = tmp_path / "p.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def one(entry, system="LPS"):
    return {"coordinate_system": system, "objects": [{"name": "spleen", **entry}]}


def test_every_kind_reads_in_lps(volume, at, write_json):
    points = [at(2, 3, 4), at(8, 9, 10)]
    content = one(
        {
            "extreme_points": points,
            "box": [at(0, 0, 0), at(5, 5, 5)],
            "clicks": [{"point": at(4, 4, 4), "positive": False}, {"point": at(5, 4, 4)}],
        }
    )
    (found,) = read_prompts(write_json(content), volume)
    expected = PromptSet(tuple(points), (BoxPrompt(at(0, 0, 0), at(5, 5, 5)),))
    expected = expected.with_click(at(4, 4, 4), False).with_click(at(5, 4, 4))
    assert found == NamedPrompts("spleen", expected)


def test_ras_points_are_the_same_places(volume, at, write_json):
    x, y, z = at(2, 3, 4)
    (found,) = read_prompts(write_json(one({"extreme_points": [[-x, -y, z]]}, "RAS")), volume)
    assert found.prompts.extreme_points == ((x, y, z),)


def test_ras_means_nothing_without_patient_axes(write_json):
    grid = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0), unit="um")
    with pytest.raises(PromptError, match="no patient axes"):
        read_prompts(write_json(one({}, "RAS")), Volume(np.zeros((4, 4, 4)), grid))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_points_boxes_and_clicks_come_back_to_the_bit(tmp_path_factory, data):
    volume = two_blocks()
    index = st.tuples(*(st.floats(0, n - 1) for n in volume.geometry.shape))
    place = index.map(lambda i: tuple(volume.geometry.to_world(i)))

    def voxel(point):
        return tuple(np.rint(volume.geometry.to_index(point)).astype(int))

    prompts = PromptSet(
        tuple(data.draw(st.lists(place, max_size=6, unique_by=voxel))),
        tuple(
            BoxPrompt(*data.draw(st.tuples(place, place)))
            for _ in range(data.draw(st.integers(0, 1)))
        ),
    )
    for point, positive in data.draw(st.lists(st.tuples(place, st.booleans()), max_size=4)):
        prompts = prompts.with_click(point, positive)
    name = data.draw(st.text(min_size=1).filter(str.strip))
    named = [NamedPrompts(name, prompts), NamedPrompts("other", PromptSet())]
    path = write_prompts(tmp_path_factory.mktemp("p") / "p.json", named, volume)
    assert read_prompts(path, volume) == named


def test_scribbles_come_back_as_the_same_voxels(volume, tmp_path):
    inside, outside = np.array([[3, 4, 5], [3, 4, 6]]), np.array([[8, 9, 10]])
    world = volume.geometry.to_world
    prompts = PromptSet().with_scribble(world(inside)).with_scribble(world(outside), False)
    path = write_prompts(tmp_path / "p.json", [NamedPrompts("a/b", prompts)], volume)
    (found,) = read_prompts(path, volume)
    for scribble, voxels, positive in zip(
        found.prompts.scribbles, (inside, outside), (True, False), strict=True
    ):
        assert scribble.positive is positive
        index = np.rint(volume.geometry.to_index(scribble.points)).astype(int)
        assert {tuple(i) for i in index} == {tuple(i) for i in voxels}


def test_scribbles_on_another_grid_lie_in_the_same_place(volume, at, tmp_path, write_json):
    import nibabel

    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    x, y, z = at(5, 8, 6)
    affine[:3, 3] = (-x - 4, -y - 4, z - 4)  # NIfTI is RAS: voxel (2, 2, 2) sits on the point
    data = np.zeros((5, 5, 5), dtype=np.uint8)
    data[2, 2, 2] = 1
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "s.nii.gz")
    (found,) = read_prompts(write_json(one({"scribbles": "s.nii.gz"})), volume)
    np.testing.assert_allclose(found.prompts.scribbles[0].points, [[x, y, z]], atol=1e-3)


def test_several_boxes_are_written_as_the_one_that_holds_them(volume, at, tmp_path):
    boxes = (BoxPrompt(at(0, 0, 0), at(1, 1, 1)), BoxPrompt(at(4, 5, 6), at(5, 5, 6)))
    named = [NamedPrompts("a", PromptSet(boxes=boxes))]
    (found,) = read_prompts(write_prompts(tmp_path / "p.json", named, volume), volume)
    box = found.prompts.boxes[0].to_box(volume.geometry)
    assert (box.start, box.stop) == ((0, 0, 0), (6, 6, 7))


def test_a_mask_prompt_has_no_place_in_the_file(volume, tmp_path):
    mask = MaskPrompt(MaskPatch.of(volume.array > 0), volume.geometry)
    with pytest.raises(PromptError, match="'a' starts from a mask"):
        write_prompts(tmp_path / "p.json", [NamedPrompts("a", PromptSet(mask=mask))], volume)
    assert list(tmp_path.iterdir()) == []


def test_writing_into_a_missing_folder_is_an_error(volume, tmp_path):
    with pytest.raises(WriteError):
        write_prompts(tmp_path / "no" / "p.json", [NamedPrompts("a", PromptSet())], volume)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, r"p\.json, 'coordinate_system' must be"),
        ({"coordinate_system": "ITK", "objects": []}, "must be .* got 'ITK'"),
        ({"coordinate_system": ["LPS"], "objects": []}, "'coordinate_system' must be"),
        ({"coordinate_system": "LPS"}, "'objects' must be a list"),
        ({"coordinate_system": "LPS", "objects": []}, "has no objects"),
        ({"coordinate_system": "LPS", "objects": [3]}, r"'objects\[0\]' must be an object"),
        ({"coordinate_system": "LPS", "objects": [{}]}, r"'objects\[0\]\.name' must be a text"),
        (one({"points": []}), "unknown key 'points'"),
        (one({"extreme_points": 3}), r"extreme_points' must be a list"),
        (
            one({"extreme_points": [[1, 2]]}),
            r"extreme_points\[0\]' must be a list of 3 finite",
        ),
        (one({"extreme_points": [[1, 2, "3"]]}), "3 finite numbers"),
        (one({"extreme_points": [[1, 2, float("nan")]]}), "3 finite numbers"),
        (one({"extreme_points": [[1, 2, True]]}), "3 finite numbers"),
        (one({"extreme_points": [[0, 0, k] for k in range(7)]}), "at most six points"),
        (one({"box": [[1, 2, 3]]}), "box' must be a list of 2"),
        (one({"clicks": [[1, 2, 3]]}), r"clicks\[0\]' must be an object"),
        (one({"clicks": [{"point": [1, 2, 3], "positive": 1}]}), "true or false"),
        (one({"scribbles": 5}), "scribbles' must be a text"),
        (one({"extreme_points": [[0, 0, 0]]}), "object 'spleen': extreme point 1 .* outside"),
        ({"markups": 4}, "'markups' must be a list"),
    ],
)
def test_wrong_content_names_file_and_key(volume, write_json, content, sentence):
    with pytest.raises(PromptError, match=sentence):
        read_prompts(write_json(content), volume)


def test_the_same_point_twice_names_file_object_and_points(volume, at, write_json):
    content = one({"extreme_points": [at(1, 1, 1), at(2, 2, 2), at(1, 1, 1)]})
    with pytest.raises(PromptError, match=r"p\.json, object 'spleen': extreme points 1 and 3"):
        read_prompts(write_json(content), volume)


def test_missing_and_damaged_files_name_themselves(volume, tmp_path, write_json):
    with pytest.raises(ReadError, match=r"no prompt file .*gone"):
        read_prompts(tmp_path / "gone.json", volume)
    for content in (b"{", b"\xff\xfe\x00", b"", b"PK\x03\x04"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ReadError, match=r"bad\.json is not valid JSON"):
            read_prompts(tmp_path / "bad.json", volume)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ReadError, match=r"list\.json does not hold a JSON object"):
        read_prompts(tmp_path / "list.json", volume)
    with pytest.raises(ReadError, match=r"names .*none.nii.gz, which does not exist"):
        read_prompts(write_json(one({"scribbles": "none.nii.gz"})), volume)
    with pytest.raises(ReadError, match="can't be read"):
        read_prompts(tmp_path, volume)


def test_a_scribble_image_without_ones_and_twos_is_an_error(volume, tmp_path, write_json):
    import nibabel

    image = nibabel.Nifti1Image(np.full((3, 3, 3), 5, dtype=np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "s.nii.gz")
    with pytest.raises(PromptError, match=r"neither 1 .inside. nor 2 .outside."):
        read_prompts(write_json(one({"scribbles": "s.nii.gz"})), volume)
