"""Three numbers in one option, or a sentence."""

import pytest
import typer

from napari_openmedlab.cli.numbers import three


def test_three_numbers_are_read_in_their_kind():
    assert three("4, 2,2", "--at", int) == (4, 2, 2)
    assert three("-1,0.5,2e3", "--at", float) == (-1.0, 0.5, 2000.0)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "1,nan,1", "1,1,inf", "1,0,1"])
def test_anything_else_is_refused_with_what_was_given(text):
    with pytest.raises(typer.BadParameter) as raised:
        three(text, "--voxel-size", float, 0.0)
    assert "--voxel-size" in str(raised.value)
    assert f"'{text}'" in str(raised.value)


def test_whole_numbers_are_asked_for():
    with pytest.raises(typer.BadParameter, match="whole"):
        three("1.5,2,3", "--patch", int)
    with pytest.raises(typer.BadParameter):
        three(f"1,2,{10**400}", "--patch", int)
