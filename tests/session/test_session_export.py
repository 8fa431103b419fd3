import json

import nibabel
import numpy as np

from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.session.export import export, provenance_of
from napari_openmedlab.session.objects import EngineChoice
from napari_openmedlab.session.runner import run_once
from napari_openmedlab.session.session import Session


def test_masks_names_and_how_they_were_made_go_to_the_files(flood, tmp_path):
    data = np.zeros((9, 10, 11), dtype=np.int16)
    data[2:5, 3:6, 4:8] = 300
    affine = np.array([[0, 0, 2, 5], [-1.5, 0, 0, 6], [0, 3, 0, 7], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "ct.nii.gz")
    session = Session(read(tmp_path / "ct.nii.gz"))
    session.choice = EngineChoice("flood")
    session.add_object("cube", (1.0, 0.5, 0.25))
    inside = np.argwhere(session.volume.array == 300)[0]
    session.set_prompts(PromptSet().with_click(session.volume.geometry.to_world(inside)))
    request = session.request()
    session.apply(run_once("flood", session.volume, request), request)
    session.add_object("empty")

    written = export(session, tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), data == 300)
    np.testing.assert_array_equal(mask.affine, affine)
    _, names = read_labels(tmp_path / "mask.nii.gz")
    assert {v: i.name for v, i in names.items()} == {1: "cube"}
    sidecar = json.loads(next(p for p in written if p.suffix == ".json").read_text("utf-8"))
    (made,) = sidecar["provenance"]["objects"]
    assert (made["name"], made["engine"], made["score"]) == ("cube", "flood", 0.5)
    assert made["prompts"]["clicks"] == [
        {"point": list(session.get(1).prompts.clicks[0].point), "positive": True}
    ]


def test_a_mask_painted_by_hand_says_so(volume):
    labels = np.zeros(volume.geometry.shape, dtype=np.uint16)
    labels[1, 1, 1] = 2
    (made,) = provenance_of(Session(volume, labels=labels))["objects"]
    assert (made["engine"], made["score"]) == ("by hand", None)
