"""MedLAM equals the published network: keys, numbers, and only the work that is asked for."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from golden_networks import largest_difference, load_filled, read_json, recorded, shapes_of
from scipy import ndimage
from torch.nn import functional

from napari_openmedlab.models import networks
from napari_openmedlab.models.networks import medlam

TOLERANCE = 1e-4  # stated beside the reference numbers
# Every n-th voxel is stored, by activation; every eighth channel.
STEPS = {"conv0_1": 8, "conv0_2": 8, "conv1_2": 4, "conv2_2": 2, "conv3_2": 1, "conv4_2": 1}
FEATURE_STEPS = (2, 4, 8)


@pytest.fixture
def forward(golden):
    with np.load(golden / "medlam" / "forward.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture
def network():
    return filled()


def filled(**variant):
    network = load_filled(networks.build("medlam", device="meta", **variant), prefix="module.")
    return network.to(memory_format=network.memory_format)


@torch.inference_mode()
def differences(network, stored, scales=(0, 1, 2)):
    """Largest differences from the stored numbers: position, then a feature map a scale."""
    found = network(torch.from_numpy(stored["x"]), scales)
    distances = {"position": largest_difference(found.position, stored["fc_position"])}
    for scale, features in zip(scales, found.features, strict=True):
        step = FEATURE_STEPS[scale]
        part = features[:, ::8, ::step, ::step, ::step]
        distances[f"feature{scale}"] = largest_difference(part, stored[f"feature{scale}"])
    return distances


def test_keys_order_and_shapes_are_the_published_ones(golden):
    entries = read_json(golden / "medlam" / "keys.json")["entries"]
    network = networks.build("medlam", device="meta")
    published = [(key.removeprefix("module."), tuple(shape)) for key, shape, _ in entries]
    assert shapes_of(network) == published
    assert sum(p.numel() for p in network.parameters()) == 15_067_878


def test_meta_build_loads_completely():
    network = networks.build("medlam", device="meta")
    load_filled(network, prefix="module.")
    tensors = itertools.chain(network.parameters(), network.buffers())
    assert not any(tensor.is_meta for tensor in tensors)
    assert not network.training


def test_equals_the_reference(network, forward):
    modules = {name: getattr(network, name) for name in STEPS}
    with recorded(modules) as outputs:
        distances = differences(network, forward)
    for name, step in STEPS.items():
        part = outputs[name][:, ::8, ::step, ::step, ::step]
        distances[name] = largest_difference(part, forward[name])
    assert max(distances.values()) < TOLERANCE, distances


@pytest.mark.slow
def test_equals_the_reference_in_both_samples_and_layouts(full_golden):
    with np.load(full_golden / "medlam" / "forward.npz") as file:
        stored = {name: file[name] for name in file.files}
    network = filled()
    assert max(differences(network, stored).values()) < TOLERANCE
    network = network.to(memory_format=torch.contiguous_format)
    assert max(differences(network, stored).values()) < TOLERANCE


@torch.inference_mode()
def test_unused_classifier_equals_the_reference(network, forward):
    (finest,) = network.features(torch.from_numpy(forward["x"]), (2,))
    found = network.unused_probability(finest)[:, :, ::4, ::4, ::4]
    assert largest_difference(found, forward["prob"]) < TOLERANCE


@torch.inference_mode()
def test_position_runs_the_encoder_alone(network, forward):
    with recorded(dict(network.named_modules())) as ran:
        position = network.position(torch.from_numpy(forward["x"]))
    assert "conv4_2" in ran
    assert not {"conv5_1", "conv6_1", "conv7_1", "conv8_1", "classification"} & set(ran)
    assert largest_difference(position, forward["fc_position"]) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("scales", [(0,), (0, 1), (1, 0), ()])
def test_features_run_no_further_than_the_finest_scale(scales, forward):
    network = filled(base_channels=2)
    patches = torch.from_numpy(forward["x"])
    with recorded(dict(network.named_modules())) as ran:
        found = network.features(patches, scales)
    stages = {name for name in ran if name.startswith("conv") and "." not in name}
    finest = max(scales, default=-2)
    assert ("conv5_1" in stages) == bool(scales)
    assert ("conv6_1" in stages) == (finest >= 0)
    assert ("conv7_1" in stages) == (finest >= 1)
    assert not {"conv8_1", "fc1", "classification"} & set(ran)
    every = network(patches).features
    for scale, features in zip(scales, found, strict=True):
        assert features.shape == (1, 8, *(16 * 2**scale,) * 3)
        assert torch.equal(features, every[scale])


@torch.inference_mode()
def test_patches_do_not_influence_each_other(forward):
    network = filled(base_channels=2)
    patch = torch.from_numpy(forward["x"])
    both = torch.cat((patch.flip(2), patch))
    alone, together = network(patch), network(both)
    assert largest_difference(together.position[1:], alone.position) < TOLERANCE
    for one, two in zip(alone.features, together.features, strict=True):
        assert largest_difference(two[1:], one) < TOLERANCE


def test_gradients_reach_every_weight_and_training_gives_the_same_numbers(forward):
    network = filled(base_channels=2)
    patch = torch.from_numpy(forward["x"])
    found = network(patch)
    with torch.inference_mode():
        plain = network(patch)
    assert largest_difference(found.position, plain.position) < 1e-4
    unused = network.unused_probability(found.features[2])
    (found.position.sum() + sum(f.square().sum() for f in found.features) + unused.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_refuses_other_patches_scales_and_widths():
    network = networks.build("medlam", device="meta", base_channels=2)
    for shape in ((1, 1, 32, 64, 64), (1, 2, 64, 64, 64), (1, 64, 64, 64)):
        with pytest.raises(ValueError, match="64, 64, 64"):
            network.position(torch.empty(shape, device="meta"))
    with pytest.raises(ValueError, match="no feature scale 3"):
        network.features(torch.empty(1, 1, 64, 64, 64, device="meta"), (0, 3))
    with pytest.raises(ValueError, match="width of 0"):
        networks.build("medlam", base_channels=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("precision", "position", "mean_cosine", "least_cosine"),
    [(torch.bfloat16, 0.1, 0.999, 0.99), (torch.float16, 0.005, 0.9999, 0.9999)],
)
def test_autocast_moves_the_numbers(
    precision, position, mean_cosine, least_cosine, network, forward
):
    """Half precision on the CPU, stand-in weights, positions of 0.1 to 0.7.

    Measured on this patch (on noise): bfloat16 moves the position by 0.040 (0.094), up to some
    100 mm in the body, float16 by 0.0016 (0.0016), about 2 mm. An engine takes float16.
    """
    patch = torch.from_numpy(forward["x"])
    wanted = network(patch, (0, 1))
    with torch.autocast("cpu", precision):
        found = network(patch, (0, 1))
    assert found.position.dtype == torch.float32
    assert found.features[0].dtype == precision
    assert largest_difference(found.position, wanted.position) < position
    for one, two in zip(found.features, wanted.features, strict=True):
        cosine = functional.cosine_similarity(one.float(), two, dim=1)
        assert float(cosine.mean()) > mean_cosine
        assert float(cosine.min()) > least_cosine


def corners_aligned(network, _patch):
    network.up.align_corners = True


def average_pooling(network, _patch):
    network.down = torch.nn.AvgPool3d(2)


def overlapping_pooling(network, _patch):
    network.down = torch.nn.MaxPool3d(3, stride=2, padding=1)


def skip_before_upsampled(_network, patch):
    joined = torch.cat
    patch.setattr(medlam.torch, "cat", lambda tensors, dim: joined(tensors[::-1], dim=dim))


def no_activation(_network, patch):
    patch.setattr(medlam.functional, "relu_", lambda features: features)


def no_norm(network, _patch):
    network.conv3_1.model.conv1_1.norm = torch.nn.Identity()


def activation_in_the_head(network, _patch):
    network.fc1.register_forward_hook(lambda _module, _inputs, output: output.relu())


def flattened_channels_last(network, _patch):
    def swap(_module, inputs):
        return (inputs[0].unflatten(1, (384, 64)).transpose(1, 2).flatten(1),)

    network.fc1.register_forward_pre_hook(swap)


@pytest.mark.parametrize(
    ("fault", "seen_in"),
    [
        (corners_aligned, "feature0"),
        (average_pooling, "position"),
        (overlapping_pooling, "position"),
        (skip_before_upsampled, "feature0"),
        (no_activation, "position"),
        (no_norm, "position"),
        (activation_in_the_head, "position"),
        (flattened_channels_last, "position"),
    ],
)
def test_a_fault_makes_the_reference_fail(fault, seen_in, network, forward, monkeypatch):
    assert differences(network, forward, scales=(0,))[seen_in] < TOLERANCE
    fault(network, monkeypatch)
    assert differences(network, forward, scales=(0,))[seen_in] > 100 * TOLERANCE


def working_volume(path):
    """CT as the network sees it: (z, y, x) to Superior, Anterior, Left, 3 mm, 0..1, padded."""
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LAS")
    )
    image = image.as_reoriented(turn)
    zoom = np.array(image.header.get_zooms()[::-1], dtype=float) / 3.0
    array = ndimage.zoom(image.get_fdata().transpose(2, 1, 0), zoom, order=3)
    array = np.interp(array, (-1000, -200, 200, 1500), (0.0, 0.2, 0.8, 1.0))
    return np.pad(array.astype(np.float32), 32)


def patches_at(volume, points):
    cut = [volume[tuple(slice(c - 32, c + 32) for c in point)] for point in points]
    return torch.from_numpy(np.stack(cut)[:, None])


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(
    ("file", "width", "templates", "points", "channels"),
    [("wpl_base4", 4, (0, 1), 6, 1), ("wpl_base24", 24, (0,), 2, 8)],
)
def test_equals_the_reference_on_scans(file, width, templates, points, channels, full_golden):
    """Positions of start and template patches, and the template kernels, on made-up scans.

    Positions are compared as the mean over the templates and kernels as their sum, as stored.
    """
    folder = full_golden / "medlam" / "unsaturated"
    network = filled(base_channels=width)
    network.fc3.weight *= 0.05
    network.fc3.bias *= 0.05
    with np.load(folder / f"{file}.npz") as file_content:
        stored = {name: file_content[name] for name in file_content.files}
    starts = stored["start_voxel_padded_zyx"][:points]
    query = patches_at(working_volume(folder / "query.nii.gz"), starts)
    wanted = stored["query_latent"][:points]
    assert largest_difference(network.position(query), wanted) < TOLERANCE
    outputs = []
    for template in templates:
        marks = stored[f"c1_t{template}_support_points_padded_zyx"][:points]
        volume = working_volume(folder / f"template{template}.nii.gz")
        outputs.append(network(patches_at(volume, marks)))
    position = torch.stack([output.position for output in outputs]).mean(0)
    assert largest_difference(position, stored["c1_support_latent_mean"][:points]) < TOLERANCE
    for scale in (0, 1, 2):
        kernel = sum(kernel_of(output.features[scale], 2**scale) for output in outputs)
        wanted = stored[f"c1_feature{scale}_template_kernel"][:points]
        assert largest_difference(kernel[:, ::channels], wanted) < TOLERANCE


def kernel_of(features, half):
    middle = features.shape[-1] // 2
    core = slice(middle - half, middle + half)
    return functional.normalize(features[:, :, core, core, core], dim=1)
