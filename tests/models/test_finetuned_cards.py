"""Models made here: the card is part of the file, and what is damaged is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from napari_openmedlab.errors import CheckpointError, WriteError
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.bundle import pack, unpack
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.class_names import class_names
from napari_openmedlab.models.finetuned import (
    CARD_KEY,
    Intensity,
    LabelClass,
    ModelCard,
    Preprocessing,
    Provenance,
    card_from_json,
    read_card,
    write_model,
)

torch = pytest.importorskip("torch", reason="writing weights needs the extra 'models'")

VARIANT = {
    "in_channels": 1,
    "out_channels": 3,
    "channels": [2, 2, 4, 4, 4],
    "resolution_mode": 1,
}
CARD = ModelCard(
    "Liver and stone",
    "fmunet",
    VARIANT,
    Preprocessing((8, 32, 32), (4, 16, 16), (3.0, 1.5, 1.5), Intensity("clip", -200.0, 300.0)),
    (LabelClass("Leber", 5, (200, 30, 30)), LabelClass("stone", 2)),
    provenance=Provenance(
        cases=3,
        held_out=1,
        init="fmunet",
        init_sha256="a" * 64,
        iterations=1500,
        seed=7,
        held_out_dice={"Leber": 0.91, "stone": 0.5},
        finished="2026-01-02 03:04",
        versions={"torch": "2.13"},
        settings={"rate": 0.001, "patience": None},
    ),
)


def _weights(card=CARD):
    torch.manual_seed(0)
    return networks.build(card.network, **card.variant).state_dict()


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "liver.safetensors"
    write_model(path, _weights(), CARD)
    return path


def test_a_card_survives_its_file(trained):
    assert read_card(trained) == CARD
    assert read_card(trained).names == {5: "Leber", 2: "stone"}


def test_files_without_a_card_have_none(tmp_path):
    for name, content in (("a.pth", b"PK\x03\x04 no"), ("b", b""), ("c", b"\xff" * 40)):
        (tmp_path / name).write_bytes(content)
        assert read_card(tmp_path / name) is None
    with pytest.raises(CheckpointError, match="can't be read"):
        read_card(tmp_path / "missing")


def test_reading_a_card_needs_no_torch(trained):
    code = (
        "import sys; from napari_openmedlab.models.finetuned import read_card;"
        "print(read_card(sys.argv[1]).title, 'torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(trained)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "Liver and stone False"


def test_the_store_keeps_card_variant_and_weights(trained, tmp_path):
    store = ModelStore(tmp_path / "store")
    record = store.import_file(trained)
    assert record.name == "liver"
    assert record.checkpoint == ""
    assert record.variant == VARIANT
    assert store.get("liver").model_card == CARD
    assert class_names(record) == (("background", "Leber", "stone"), ())
    network = store.load("liver")
    for key, tensor in _weights().items():
        assert torch.equal(network.state_dict()[key], tensor)
    store.verify("liver")
    # What lies in the store is itself a file that a colleague can import.
    again = ModelStore(tmp_path / "other").import_file(store.path("liver"), "theirs")
    assert again.model_card == CARD


def test_a_bundle_carries_the_card(trained, tmp_path):
    store, other = ModelStore(tmp_path / "store"), ModelStore(tmp_path / "other")
    store.import_file(trained)
    pack(tmp_path / "models.zip", store)
    (record,) = unpack(tmp_path / "models.zip", other)
    assert record.model_card == CARD
    assert read_card(other.path("liver")) == CARD


def test_a_card_says_what_weights_dont_the_resolution_mode_of_pct_net(tmp_path):
    variant = {
        "in_channels": 1,
        "out_channels": 3,
        "channels": [2, 2, 4, 8, 16],
        "resolution_mode": 0,
        "windows": [2, 2, 2],
    }
    card = replace(CARD, network="pct-net", variant=variant)
    write_model(tmp_path / "pct.safetensors", _weights(card), card)
    record = ModelStore(tmp_path / "store").import_file(tmp_path / "pct.safetensors")
    assert record.variant["resolution_mode"] == 0
    assert record.notes == ()


def test_a_trained_file_is_never_taken_for_a_published_one(trained, tmp_path):
    named = tmp_path / "fmunet_abk1k_volf.pt"
    trained.rename(named)
    store = ModelStore(tmp_path / "store")
    with pytest.raises(CheckpointError, match="trained with napari-openmedlab"):
        store.import_file(named, as_="fmunet")
    assert store.import_file(named).checkpoint == ""
    with pytest.raises(CheckpointError, match="of fmunet, not of pct-net"):
        store.import_file(named, "x", as_="pct-net")


def test_weights_that_are_not_the_cards_or_not_finite_are_not_written(tmp_path):
    weights = _weights()
    path = tmp_path / "m.safetensors"
    write_model(path, weights, CARD)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"project.weight' .* is missing"):
        write_model(path, {k: v for k, v in weights.items() if k != "project.weight"}, CARD)
    bad = {**weights, "project.weight": weights["project.weight"] * float("nan")}
    with pytest.raises(CheckpointError, match="NaN"):
        write_model(path, bad, CARD)
    with pytest.raises(WriteError, match="does not exist"):
        write_model(tmp_path / "no" / "m.safetensors", weights, CARD)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_import_compares_the_weights_with_the_card(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    other = replace(CARD, variant={**VARIANT, "channels": [2, 2, 4, 4, 8]})
    path = tmp_path / "m.safetensors"
    safetensors_torch.save_file(_weights(), path, {CARD_KEY: json.dumps(other.as_json())})
    with pytest.raises(CheckpointError, match="does not fit"):
        ModelStore(tmp_path / "store").import_file(path)
    odd = {**CARD.as_json(), "variant": {**VARIANT, "device": "cuda"}}
    safetensors_torch.save_file(_weights(), path, {CARD_KEY: json.dumps(odd)})
    with pytest.raises(CheckpointError, match="can be built"):
        ModelStore(tmp_path / "store").import_file(path)


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        (("format",), 99, "newer version"),
        (("format",), "1", "damaged"),
        (("network",), "stu-net-s", "no network"),
        (("kind",), "magic", "kind"),
        (("title",), 3, "title"),
        (("variant", "out_channels"), 9, "names 2 classes"),
        (("variant",), [], "damaged"),
        (("classes",), None, "damaged"),
        (("classes", 0, "name"), " ", "no name"),
        (("classes", 0, "name"), "stone", "two classes"),
        (("classes", 0, "value"), 2, "two classes"),
        (("classes", 0, "value"), 0, "value 0"),
        (("classes", 0, "color"), [1, 2, 300], "colour"),
        (("preprocessing", "patch"), [8, 32], "triple"),
        (("preprocessing", "stride"), [9, 16, 16], "every"),
        (("preprocessing", "spacing"), [1.0, 0.0, 1.0], "mm"),
        (("preprocessing", "intensity", "rule"), "magic", "rule"),
        (("preprocessing", "intensity", "low"), 400.0, "intensities"),
        (("provenance", "cases"), -1, "number"),
        (("provenance", "held_out_dice"), {"liver": 2.0}, "Dice"),
        (("provenance", "versions"), [], "provenance"),
    ],
)
def test_a_damaged_card_is_refused_in_words(where, value, why):
    found = CARD.as_json()
    place = found
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(CheckpointError, match=why):
        card_from_json(found, "x.safetensors")


def test_missing_parts_and_nonsense_are_refused():
    for key in ("preprocessing", "classes", "network", "variant", "title", "kind"):
        with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
            card_from_json({k: v for k, v in CARD.as_json().items() if k != key})
    for nonsense in (None, [], "card", 3, {}):
        with pytest.raises(CheckpointError):
            card_from_json(nonsense)


def test_a_record_with_a_damaged_card_is_listed_as_damaged(trained, tmp_path):
    store = ModelStore(tmp_path / "store")
    store.import_file(trained)
    path = store.folder / "liver.json"
    found = json.loads(path.read_text())
    found["card"]["classes"] = 5
    path.write_text(json.dumps(found))
    (entry,) = store.entries()
    assert entry.state == "damaged"
    assert "card" in entry.problem
