"""The catalogue of published checkpoints: complete, honest, and true to the networks."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models import networks
from napari_openmedlab.models.catalogue import (
    NOT_STATED,
    CheckpointSpec,
    checkpoints,
    get_checkpoint,
)

ALL = checkpoints()
STABLE = ("https://huggingface.co/", "https://dl.fbaipublicfiles.com/segment_anything/")
PUBLISHED_NETWORKS = set(networks.names()) - {"axon-seg-plain"}  # its publisher offers no file


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_every_entry_says_what_a_user_must_know(spec):
    assert re.fullmatch(r"[a-z0-9-]+", spec.id)
    assert spec.network in networks.names()
    assert spec.purpose.endswith(".")
    for told in (spec.title, spec.engine, spec.input, spec.classes):
        assert told
    for licence in (spec.code_licence, spec.weights_licence):
        assert licence
    assert spec.page.startswith("https://")
    assert spec.source.startswith("https://github.com/")
    assert spec.sha256 == ""  # no publisher states one; none is invented
    assert spec.size == 0


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_only_stable_links_are_fetched(spec):
    if spec.how == "direct":
        assert spec.url.startswith(STABLE)
        assert "/blob/" not in spec.url  # the page, not the file
        assert spec.url.endswith(spec.file)
    else:
        assert spec.url == ""
    assert "drive.google.com" not in spec.url


def test_ids_and_titles_are_unique_and_every_network_has_weights():
    assert len({spec.id for spec in ALL}) == len(ALL)
    assert len({spec.title for spec in ALL}) == len(ALL)
    assert {spec.network for spec in ALL} == PUBLISHED_NETWORKS


def test_contradictory_licences_show_both_and_count_as_non_commercial():
    medlam = get_checkpoint("medlam")
    for licence in (medlam.code_licence, medlam.weights_licence):
        assert "CC BY-NC 4.0" in licence
        assert "Apache-2.0" in licence
    assert medlam.non_commercial
    assert "non-commercial" in medlam.notes
    assert get_checkpoint("stu-net-b").weights_licence == NOT_STATED


def test_entries_are_found_by_engine_and_network():
    assert [spec.id for spec in checkpoints(network="medlam")] == ["medlam"]
    assert {spec.network for spec in checkpoints(engine="mis-fm")} == {"pct-net", "fmunet"}
    assert checkpoints(engine="stu-net", network="medlam") == ()


def test_an_unknown_id_suggests_the_nearest():
    with pytest.raises(CheckpointError, match=r"no published checkpoint 'sam-med3d'.*turbo"):
        get_checkpoint("sam-med3d")


def test_a_direct_download_needs_a_link():
    fields = {
        name: getattr(ALL[0], name) for name in CheckpointSpec.__dataclass_fields__ if name != "url"
    }
    with pytest.raises(ValueError, match="go together"):
        CheckpointSpec(**{**fields, "how": "direct"})


VARIANTS = {
    **{f"stu-net-{size}-abdomen": {"out_channels": 10} for size in "sblh"},
    "stu-net-b-ct-org": {"out_channels": 7},
    "stu-net-b-feta21": {"out_channels": 8},
    "stu-net-b-brats21": {"in_channels": 4, "out_channels": 5},
}


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_parameters_are_those_of_the_network(spec):
    """Counted on the network as built without memory; the size shown to the user follows."""
    pytest.importorskip("torch")
    built = networks.build(spec.network, device="meta", **VARIANTS.get(spec.id, {}))
    assert spec.parameters == sum(parameter.numel() for parameter in built.parameters())


def test_listing_checkpoints_loads_nothing_heavy():
    code = (
        "import sys; from napari_openmedlab.models.catalogue import checkpoints; checkpoints();"
        "assert not {'torch', 'scipy', 'napari', 'qtpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
