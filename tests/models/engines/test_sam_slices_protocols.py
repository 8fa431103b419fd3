"""Each model's way from a slice to the network and back gives upstream's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_networks import largest_difference, load_filled

from napari_openmedlab.models import networks
from napari_openmedlab.models.engines.sam_slices import protocols
from napari_openmedlab.models.engines.sam_slices.protocols import (
    MedLsamProtocol,
    MedSamProtocol,
    PaddedProtocol,
    SamMed2DProtocol,
    SamProtocol,
    nearest_index,
)

CASES = {
    "point1": (1, False, False),
    "points3": (3, False, False),
    "box": (0, True, False),
    "box_points": (3, True, False),
    "point1_then_points2_with_mask": (2, False, True),
}


@pytest.fixture(scope="module", autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def med2d():
    return load_filled(networks.build("sam-med2d", device="meta"))


@pytest.fixture(scope="module")
def stored(golden):
    folder = golden / "sam_med2d"
    return {**np.load(folder / "predictor.npz"), **np.load(folder / "slices.npz")}


@pytest.fixture(scope="module")
def embedding(med2d, stored):
    return embed(med2d, SamMed2DProtocol(), stored["image_uint8"])


def unchanged(values):
    return values


def embed(network, protocol, image):
    picture = protocol.picture(image, unchanged)
    return network.encode(protocol.to_input(torch.from_numpy(picture)[None], network))


def decode(network, protocol, embedding, image, *, points=None, labels=None, box=None, fed=None):
    """One prompt in pixels of the image as (x, y): all four masks and their scores."""
    shape = image.shape[:2]
    given = {}
    if points is not None:
        places = np.asarray(points)[:, ::-1]
        given["points"] = torch.from_numpy(protocol.to_model(places, shape))[None]
        given["labels"] = torch.from_numpy(np.asarray(labels, dtype=np.int64))[None]
    if box is not None:
        x0, y0, x1, y1 = np.asarray(box).ravel()
        given["boxes"] = torch.from_numpy(protocol.box_to_model((y0, x0, y1, x1), shape))[None]
    if fed is not None:
        given["masks"] = torch.as_tensor(fed)[None]
    return network.decode(embedding, **given)


def predict(network, protocol, embedding, stored, case, single):
    count, with_box, with_mask = CASES[case]
    image = stored["image_uint8"]
    fed = None
    if with_mask:
        fed = protocol.feedback(torch.from_numpy(stored["point1__multi__lowres"]))
    masks, scores = decode(
        network,
        protocol,
        embedding,
        image,
        points=stored["points_xy"][:count] if count else None,
        labels=stored["labels"][:count],
        box=stored["box_xyxy"] if with_box else None,
        fed=fed,
    )
    return protocol.choose(masks, scores, single=single)


def unpacked(packed, shape):
    return np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape).astype(bool)


# -- SAM-Med2D ---------------------------------------------------------------------------------


def test_nearest_indices_are_those_of_opencv(golden):
    known = np.load(golden / "sam_med2d" / "nearest.npz")
    for name in known.files:
        count = int(name.rpartition("_")[2])
        np.testing.assert_array_equal(nearest_index(count, 256), known[name], err_msg=name)


@pytest.mark.parametrize("count", [186, 420])
def test_whole_number_arithmetic_would_pick_other_pixels(count):
    by_floor = np.arange(256) * count // 256
    assert (nearest_index(count, 256) != by_floor).any()
    assert nearest_index(256, 256).tolist() == list(range(256))


def test_med2d_input(med2d, stored):
    protocol = SamMed2DProtocol()
    picture = protocol.picture(stored["image_uint8"], unchanged)
    found = protocol.to_input(torch.from_numpy(picture)[None], med2d)
    assert largest_difference(found[:, :, ::4, ::4], stored["input_nchw_s4"]) < 1e-5


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_med2d_predictions(med2d, embedding, stored, case, single):
    protocol, shape = SamMed2DProtocol(), stored["image_uint8"].shape[:2]
    logits, scores = predict(med2d, protocol, embedding, stored, case, single)
    tag = f"{case}__{'single' if single else 'multi'}"
    assert largest_difference(logits, stored[f"{tag}__lowres"]) < 1e-3
    assert largest_difference(scores, stored[f"{tag}__score"]) < 1e-3
    wanted = torch.sigmoid(torch.from_numpy(stored[f"{tag}__logits_s4"]))
    found = protocol.values(logits, shape)[:, ::4, ::4]
    assert largest_difference(found, wanted.numpy()) < 1e-4
    mask = protocol.masks(logits, shape)[0].numpy()
    wrong = np.count_nonzero(mask != unpacked(stored[f"{tag}__mask_packed"], shape))
    assert wrong <= 1e-3 * mask.size


def test_med2d_boxes_one_by_one(med2d, embedding, stored):
    protocol, image = SamMed2DProtocol(), stored["image_uint8"]
    for number, box in enumerate(stored["boxes3_xyxy"]):
        x0, y0, x1, y1 = box
        scaled = protocol.box_to_model((y0, x0, y1, x1), image.shape[:2])
        assert np.abs(scaled - stored["boxes3_model_coords"][number]).max() < 1e-4
        masks, scores = decode(med2d, protocol, embedding, image, box=box)
        logits, _ = protocol.choose(masks, scores, single=False)
        wanted = torch.sigmoid(torch.from_numpy(stored["boxes3__logits_s4"][number]))
        found = protocol.values(logits, image.shape[:2])[:, ::4, ::4]
        assert largest_difference(found, wanted.numpy()) < 1e-4


def test_med2d_without_adapters(med2d, golden, stored, monkeypatch):
    for block in med2d.image_encoder.blocks:
        monkeypatch.setitem(block._modules, "Adapter", None)
    known = np.load(golden / "sam_med2d" / "noadapter_predictor.npz")
    protocol = SamMed2DProtocol()
    embedding = embed(med2d, protocol, stored["image_uint8"])
    for case in ("point1", "box"):
        logits, scores = predict(med2d, protocol, embedding, stored, case, single=False)
        assert largest_difference(logits, known[f"{case}__lowres"]) < 1e-3
        assert largest_difference(scores, known[f"{case}__score"]) < 1e-3


class OneStep(SamMed2DProtocol):
    """A fault: one interpolation instead of two."""

    def values(self, logits, shape):
        return torch.sigmoid(protocols._bilinear(logits, shape))


class RawLogits(SamMed2DProtocol):
    """A fault: SAM's mask prompt."""

    feedback = SamProtocol.feedback


class HalfPixel(SamMed2DProtocol):
    """A fault: coordinates scaled about pixel corners."""

    def to_model(self, places, shape):
        return super().to_model(np.asarray(places) + 0.5, shape) - 0.5


class Swapped(SamMed2DProtocol):
    """A fault: rows and columns swapped in the coordinates."""

    def to_model(self, places, shape):
        return super().to_model(places, shape)[..., ::-1].copy()


@pytest.mark.parametrize("fault", [OneStep, RawLogits, HalfPixel, Swapped])
def test_faults_are_noticed(med2d, embedding, stored, fault):
    case = "point1_then_points2_with_mask"
    logits, _ = predict(med2d, fault(), embedding, stored, case, single=False)
    wanted = torch.sigmoid(torch.from_numpy(stored[f"{case}__multi__logits_s4"]))
    found = fault().values(logits, stored["image_uint8"].shape[:2])[:, ::4, ::4]
    assert largest_difference(found, wanted.numpy()) > 1e-4


# -- small slices, padded ----------------------------------------------------------------------


def test_small_slices_by_the_evaluation_protocol(med2d, full_golden):
    stored = np.load(full_golden / "sam_med2d" / "eval_small_padded.npz")
    protocol, image = PaddedProtocol(), stored["image_uint8"]
    shape = image.shape[:2]
    assert protocol._corner(shape) == tuple(stored["top_left"])
    picture = protocol.picture(image, unchanged)
    inputs = protocol.to_input(torch.from_numpy(picture)[None], med2d)
    assert largest_difference(inputs[:, :, ::4, ::4], stored["input_nchw_s4"]) < 1e-5
    embedding = med2d.encode(inputs)
    assert largest_difference(embedding[:, ::4], stored["embedding_s"]) < 1e-3
    top, left = stored["top_left"]
    x, y = stored["point_model_xy"][0, 0]
    point = protocol.to_model([[y - top, x - left]], shape)
    np.testing.assert_array_equal(point, stored["point_model_xy"][0])
    masks, scores = decode(
        med2d, protocol, embedding, image, points=[[x - left, y - top]], labels=[1]
    )
    assert largest_difference(scores[:, 1:], stored["iou_multi"]) < 1e-3
    logits, _ = protocol.choose(masks, scores, single=False)
    assert largest_difference(logits, stored["lowres_best"][0]) < 1e-3
    wanted = torch.sigmoid(torch.from_numpy(stored["logits_s2"][0]))
    assert largest_difference(protocol.values(logits, shape)[:, ::2, ::2], wanted.numpy()) < 1e-4


def test_large_slices_are_not_padded():
    padded, plain = PaddedProtocol(), SamMed2DProtocol()
    image = np.arange(300 * 200, dtype=np.uint32).reshape(300, 200).astype(np.uint8)
    np.testing.assert_array_equal(padded.picture(image, unchanged), plain.picture(image, unchanged))
    np.testing.assert_array_equal(
        padded.to_model([[20, 30]], (300, 200)), plain.to_model([[20, 30]], (300, 200))
    )
    logits = torch.randn(1, 64, 64)
    assert torch.equal(padded.masks(logits, (300, 200)), plain.masks(logits, (300, 200)))


# -- SAM and MedSAM at 1024 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam_b():
    return load_filled(networks.build("sam-vit-b", device="meta"))


@pytest.mark.slow
def test_sam_predictions(sam_b, full_golden):
    stored = np.load(full_golden / "sam_med2d" / "sam_vit_b_1024.npz")
    protocol, image = SamProtocol(), stored["image_uint8"]
    shape = image.shape[:2]
    picture = protocol.picture(image, unchanged)
    assert picture.shape[:2] == tuple(stored["input_size"])
    embedding = embed(sam_b, protocol, image)
    assert largest_difference(embedding[:, ::4, ::4, ::4], stored["embedding_s"]) < 1e-3
    masks, scores = decode(sam_b, protocol, embedding, image, box=stored["box_xyxy"])
    logits, score = protocol.choose(masks, scores, single=True)
    assert largest_difference(score, stored["box_single__score"]) < 1e-3
    found = protocol.values(logits, shape)[:, ::4, ::4]
    assert largest_difference(found, stored["box_single__logits_s4"]) < 1e-3
    masks, scores = decode(sam_b, protocol, embedding, image, points=stored["point_xy"], labels=[1])
    assert largest_difference(scores[0, 1:], stored["point_multi__score"]) < 1e-3
    found = protocol.values(masks[0, 1:], shape)[:, ::4, ::4]
    assert largest_difference(found, stored["point_multi__logits_s4"]) < 1e-3
    best, _ = protocol.choose(masks, scores, single=False)
    masks, scores = decode(
        sam_b,
        protocol,
        embedding,
        image,
        points=stored["point_xy"],
        labels=[1],
        fed=protocol.feedback(best),
    )
    logits, score = protocol.choose(masks, scores, single=True)
    assert largest_difference(score, stored["point_with_mask_logits__score"]) < 1e-3
    found = protocol.values(logits, shape)[:, ::4, ::4]
    assert largest_difference(found, stored["point_with_mask_logits__logits_s4"]) < 1e-3


@pytest.mark.slow
def test_medsam_prediction(sam_b, full_golden):
    stored = np.load(full_golden / "sam_med2d" / "medsam_vit_b_1024.npz")
    protocol, image = MedSamProtocol(), stored["image_uint8"]
    shape = image.shape[:2]
    network = sam_b  # the same architecture, and stand-in weights follow from the key alone
    picture = protocol.picture(image, unchanged)
    np.testing.assert_array_equal(picture[::8, ::8], stored["resized_uint8_s8"])
    inputs = protocol.to_input(torch.from_numpy(picture)[None], network)
    assert largest_difference(inputs[:, :, ::16, ::16], stored["input_s16"]) < 1e-5
    embedding = network.encode(inputs)
    assert largest_difference(embedding[:, ::4, ::4, ::4], stored["embedding_s"]) < 1e-3
    x0, y0, x1, y1 = stored["box_xyxy"][0]
    box = protocol.box_to_model((y0, x0, y1, x1), shape)
    assert np.abs(box - stored["box_1024"][0]).max() < 1e-3
    masks, scores = decode(network, protocol, embedding, image, box=stored["box_xyxy"])
    logits, score = protocol.choose(masks, scores, single=True)
    assert largest_difference(score, stored["iou"][0]) < 1e-3
    assert largest_difference(logits[:, ::2, ::2], stored["lowres_s2"][0]) < 1e-3
    values = protocol.values(logits, shape)
    assert largest_difference(values[0, ::2, ::2], stored["prob_s2"]) < 1e-4
    mask = protocol.masks(logits, shape)[0].numpy()
    wrong = np.count_nonzero(mask != unpacked(stored["mask_packed"], shape))
    assert wrong <= 1e-3 * mask.size


def test_grey_slices_go_the_same_way_as_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (90, 70)).astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=2)
    for protocol in (SamMed2DProtocol(), PaddedProtocol(), SamProtocol()):
        one, three = protocol.picture(grey, unchanged), protocol.picture(colour, unchanged)
        np.testing.assert_array_equal(three, np.repeat(one[..., None], 3, axis=2))


def test_medsam_slices_fill_the_range():
    class Network:
        pixel_mean = pixel_std = None

    flat = torch.full((1, 8, 8), 7, dtype=torch.uint8)
    assert float(MedSamProtocol().to_input(flat, Network).abs().max()) == 0.0
    stepped = flat.clone()
    stepped[0, 0, 0] = 9
    found = MedSamProtocol().to_input(stepped, Network)
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)


def test_medlsam_boxes_are_rounded_and_wider():
    box = MedLsamProtocol().box_to_model((10, 20, 60, 70), (100, 333))
    assert box.tolist() == [52, 92, 225, 624]
    at_edge = MedLsamProtocol().box_to_model((0, 0, 100, 333), (100, 333))
    assert at_edge.tolist() == [0, 0, 1024, 1024]


@pytest.mark.parametrize(
    "protocol", [SamMed2DProtocol(), PaddedProtocol(), SamProtocol(), MedSamProtocol()]
)
@pytest.mark.parametrize("shape", [(40, 90), (300, 200), (700, 513)])
def test_a_mask_finds_its_way_there_and_back(protocol, shape):
    rows, columns = np.indices(shape)
    mask = ((rows / shape[0] - 0.4) / 0.3) ** 2 + ((columns / shape[1] - 0.6) / 0.25) ** 2 <= 1
    prompt = protocol.from_mask(mask)
    assert prompt.shape == (1, protocol.size // 4, protocol.size // 4)
    logits = prompt if isinstance(protocol, SamProtocol) else 8 * (2 * prompt - 1)
    if isinstance(protocol, MedSamProtocol):
        logits = prompt
    found = protocol.masks(logits, shape)[0].numpy()
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.97
