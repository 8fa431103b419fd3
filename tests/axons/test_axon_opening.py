"""What has to be asked before a volume opens."""

import numpy as np
import pytest
import tifffile

from napari_openmedlab.axons.opening import FillGaps, WhichImage, open_or_ask
from napari_openmedlab.axons.source import Source
from napari_openmedlab.errors import ReadError


def write(folder, name, value=0):
    tifffile.imwrite(folder / name, np.full((8, 9), value, np.uint16))


def test_time_points_of_a_stack_are_asked_for(tmp_path):
    stack = tmp_path / "t.ome.tif"
    tifffile.imwrite(stack, np.zeros((3, 4, 8, 9), np.uint16), metadata={"axes": "TZYX"})
    question = open_or_ask(stack)
    assert isinstance(question, WhichImage)
    assert [choice.shape for choice in question.found] == [(4, 8, 9)] * 3
    assert open_or_ask(stack, index=2).shape == (4, 8, 9)


@pytest.mark.parametrize("damaged", [False, True])
def test_stacks_in_a_folder_are_asked_for_even_if_a_slice_is_damaged(tmp_path, damaged):
    for z in range(5):
        write(tmp_path, f"z{z:03}_C00.tif", 1)
        write(tmp_path, f"z{z:03}_C01.tif", 2)
    if damaged:
        (tmp_path / "z002_C01.tif").write_bytes(b"II*\0")
    question = open_or_ask(tmp_path)
    assert isinstance(question, WhichImage)
    assert ["C00" in question.found[0].title, "C01" in question.found[1].title] == [True, True]
    assert isinstance(open_or_ask(tmp_path, index=0), Source)
    second = open_or_ask(tmp_path, index=1)
    assert isinstance(second, FillGaps if damaged else Source)
    assert open_or_ask(tmp_path, index=1, gaps="fill").address.gaps == "fill"


def test_filling_is_offered_only_where_it_helps(tmp_path):
    for z in (0, 1, 2, 4):
        write(tmp_path, f"s{z}.tif")
    question = open_or_ask(tmp_path)
    assert isinstance(question, FillGaps)
    assert "missing" in question.text
    tifffile.imwrite(tmp_path / "s5.tif", np.zeros((3, 3), np.uint16))
    with pytest.raises(ReadError, match="differ"):
        open_or_ask(tmp_path)
    with pytest.raises(ReadError, match="does not exist"):
        open_or_ask(tmp_path / "nothing")
