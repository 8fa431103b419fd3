"""Every published checkpoint: facts as the publishers state them, nothing else.

Licences, links, file names and papers are those of the publishers' READMEs, licence files and
loaders. No publisher states a size or a hash, so none stands here; ``parameters`` was counted
on the networks. Google Drive and project pages have no stable link to a file: a person gets the
file there in a browser. A Hugging Face or Meta link to the file itself can be fetched.
"""

from __future__ import annotations

from napari_openmedlab.models.checkpoint_spec import NOT_STATED, CheckpointSpec

__all__ = ["PUBLISHED"]

_APACHE = "Apache-2.0"
_PROMPTED = "anything that is prompted; it names nothing"
_DRIVE_FILE = "https://drive.google.com/file/d/{}/view"
_DRIVE_FOLDER = "https://drive.google.com/drive/folders/{}"


def _sam(size: str, file: str, parameters: int) -> CheckpointSpec:
    """Return Meta's Segment Anything in one of its three sizes."""
    return CheckpointSpec(
        id=f"sam-vit-{size.lower()}",
        title=f"SAM ViT-{size}",
        network=f"sam-vit-{size.lower()}",
        engine="sam",
        purpose="Meta's general 2D model, not made for medicine: slices from points and boxes.",
        input="2D slices, 1024 x 1024, three channels (grey is repeated)",
        classes=_PROMPTED,
        code_licence=_APACHE,
        weights_licence=_APACHE,
        page="https://github.com/facebookresearch/segment-anything",
        source="https://github.com/facebookresearch/segment-anything",
        how="direct",
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        file=file,
        parameters=parameters,
    )


_SLICES: tuple[CheckpointSpec, ...] = (
    _sam("B", "sam_vit_b_01ec64.pth", 93_735_472),
    _sam("L", "sam_vit_l_0b3195.pth", 312_342_832),
    _sam("H", "sam_vit_h_4b8939.pth", 641_090_608),
    CheckpointSpec(
        id="medsam",
        title="MedSAM ViT-B",
        network="medsam",
        engine="medsam",
        purpose="SAM trained on medical images: one box gives the mask of the slice.",
        input="2D slices, 1024 x 1024, scaled to [0, 1]; CT in a window first (W 400, L 40)",
        classes=_PROMPTED + "; boxes only",
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=_DRIVE_FOLDER.format("1ETWmi4AiniJeWOt6HAsYgTjYv_fkgzoN"),
        source="https://github.com/bowang-lab/MedSAM",
        file="medsam_vit_b.pth",
        parameters=93_735_472,
        notes="Same layout as SAM ViT-B: an imported file can't tell which of the two it is.",
    ),
    CheckpointSpec(
        id="sam-med2d",
        title="SAM-Med2D",
        network="sam-med2d",
        engine="sam-med2d",
        purpose="SAM with adapters trained on 10 modalities: slices from points, boxes and masks.",
        input="2D slices, 256 x 256, three channels (grey is repeated)",
        classes=_PROMPTED,
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=_DRIVE_FILE.format("1ARiB5RkSsWmAB_8mqWnwDF8ZKTtFwsjl"),
        source="https://github.com/OpenGVLab/SAM-Med2D",
        file="sam-med2d_b.pth",
        parameters=271_241_776,
    ),
    CheckpointSpec(
        id="ft-sam",
        title="FT-SAM",
        network="ft-sam",
        engine="sam-med2d",
        purpose="SAM fine-tuned on the data of SAM-Med2D, without adapters: smaller and faster.",
        input="2D slices, 256 x 256, three channels (grey is repeated)",
        classes=_PROMPTED,
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=_DRIVE_FILE.format("1J4qQt9MZZYdv1eoxMTJ4FL8Fz65iUFM8"),
        source="https://github.com/OpenGVLab/SAM-Med2D",
        file="ft-sam_b.pth",
        parameters=90_737_200,
    ),
)


_SAM_MED3D_HUB = "https://huggingface.co/blueyo0/SAM-Med3D"


def _sam_med3d_cvpr25(name: str, title: str, file: str) -> CheckpointSpec:
    """Return one of the challenge baselines that lie beside the turbo file."""
    return CheckpointSpec(
        id=f"sam-med3d-{name}",
        title=f"SAM-Med3D {title}",
        network="sam-med3d",
        engine="sam-med3d",
        purpose="Baseline of the CVPR 2025 challenge; for comparisons, not for daily use.",
        input="3D crops, 128 x 128 x 128 voxels",
        classes=_PROMPTED,
        code_licence=_APACHE,
        weights_licence=_APACHE,
        page=_SAM_MED3D_HUB,
        source="https://github.com/uni-medical/SAM-Med3D",
        file=file,
        parameters=100_509_232,
        paper="arXiv 2310.15161",
        notes="The file holds two box embeddings that its own inference does not use; they are "
        "left out at import.",
    )


_VOLUMES: tuple[CheckpointSpec, ...] = (
    CheckpointSpec(
        id="sam-med3d-turbo",
        title="SAM-Med3D turbo",
        network="sam-med3d",
        engine="sam-med3d",
        purpose="3D masks from a few clicks; the publisher's recommended file, 44 data sets.",
        input="3D crops, 128 x 128 x 128 voxels of 1.5 mm",
        classes=_PROMPTED,
        code_licence=_APACHE,
        weights_licence=_APACHE,
        page=f"{_SAM_MED3D_HUB}/blob/main/sam_med3d_turbo.pth",
        source="https://github.com/uni-medical/SAM-Med3D",
        how="direct",
        url=f"{_SAM_MED3D_HUB}/resolve/main/sam_med3d_turbo.pth",
        file="sam_med3d_turbo.pth",
        parameters=100_509_232,
        paper="arXiv 2310.15161",
    ),
    _sam_med3d_cvpr25("cvpr25-bbox-init", "CVPR25 bbox init", "sam_med3d_turbo_bbox_init.pth"),
    _sam_med3d_cvpr25("cvpr25-coreset", "CVPR25 coreset", "sam_med3d_turbo_cvpr_coreset.pth"),
    _sam_med3d_cvpr25("cvpr25-alldata", "CVPR25 all data", ""),
    CheckpointSpec(
        id="medlam",
        title="MedLAM",
        network="medlam",
        engine="medlam",
        purpose="Finds in new CTs the structures that were marked in a few template scans.",
        input="3D patches of CT, 64 x 64 x 64 voxels of 3 mm",
        classes="any structure marked in the templates: its box, no mask",
        code_licence="contradictory: CC BY-NC 4.0 in the README, Apache-2.0 in the LICENSE file",
        weights_licence="contradictory: CC BY-NC 4.0 in the README, Apache-2.0 in the LICENSE file",
        page=_DRIVE_FILE.format("1cwoHS5yNPI22-jgMnoUo_yqj0U9Rab3E"),
        source="https://github.com/openmedlab/MedLSAM",
        file="medlam.pth",
        parameters=15_067_878,
        non_commercial=True,
        notes="The two licences contradict each other: take it as non-commercial until the "
        "authors say otherwise.",
    ),
)


_STU_NET_SOURCE = "https://github.com/uni-medical/STU-Net"
_ABDOMEN_PARAMETERS = {"s": 14_549_346, "b": 58_167_954, "l": 440_113_650, "h": 1_457_043_026}
_STU_NET_SIZES = {
    "s": ("S", "small", 14_596_941),
    "b": ("B", "base", 58_262_669),
    "l": ("L", "large", 440_302_605),
    "h": ("H", "huge", 1_457_326_221),
}


def _stu_net(letter: str, dice: str) -> CheckpointSpec:
    """Return a model trained on TotalSegmentator's 104 structures."""
    size, word, parameters = _STU_NET_SIZES[letter]
    hub = "https://huggingface.co/ziyanhuang/STU-Net"
    return CheckpointSpec(
        id=f"stu-net-{letter}",
        title=f"STU-Net-{size} (104 structures)",
        network=f"stu-net-{letter}",
        engine="stu-net",
        purpose=f"Names 104 structures in CT by itself; published mean Dice {dice} %.",
        input="CT, 1.5 mm voxels, patches of 128 x 128 x 128",
        classes="the 104 structures of TotalSegmentator v1",
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=f"{hub}/blob/main/{word}_ep4k.model",
        source=_STU_NET_SOURCE,
        how="direct",
        url=f"{hub}/resolve/main/{word}_ep4k.model",
        file=f"{word}_ep4k.model",
        parameters=parameters,
    )


def _stu_net_abdomen(letter: str) -> CheckpointSpec:
    """Return a model trained on AbdomenAtlasMini."""
    size = _STU_NET_SIZES[letter][0]
    return CheckpointSpec(
        id=f"stu-net-{letter}-abdomen",
        title=f"STU-Net-{size} (AbdomenAtlasMini)",
        network=f"stu-net-{letter}",
        engine="stu-net",
        purpose="Names nine abdominal organs in CT by itself.",
        input="CT; the grid stands in the plans.pkl beside the file",
        classes="aorta, gallbladder, inferior vena cava, left kidney, liver, pancreas, right "
        "kidney, spleen, stomach",
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=_STU_NET_SOURCE,
        source=_STU_NET_SOURCE,
        file="model_final_checkpoint.model",
        parameters=_ABDOMEN_PARAMETERS[letter],
        notes="Keep plans.pkl beside the file when importing: the weights alone don't say how "
        "the network pools.",
    )


def _stu_net_tuned(
    name: str, channels: int, classes: int, parameters: int, notes: str = ""
) -> CheckpointSpec:
    """Return a B model fine-tuned on another data set."""
    return CheckpointSpec(
        id=f"stu-net-b-{name.lower()}",
        title=f"STU-Net-B ({name})",
        network="stu-net-b",
        engine="stu-net",
        purpose=f"STU-Net-B fine-tuned on {name}.",
        input=f"volumes with {channels} channel{'s' if channels > 1 else ''}",
        classes=f"{classes} outputs, background included; their names are not stated",
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=f"https://huggingface.co/blueyo0/STU-Net_{name}",
        source=_STU_NET_SOURCE,
        file="base_ep1k.model",
        parameters=parameters,
        notes=notes,
    )


_WHOLE_BODY: tuple[CheckpointSpec, ...] = (
    _stu_net("s", "83.7"),
    _stu_net("b", "87.1"),
    _stu_net("l", "88.7"),
    _stu_net("h", "90.06"),
    *(_stu_net_abdomen(letter) for letter in _STU_NET_SIZES),
    _stu_net_tuned("CT-ORG", 1, 7, 58_164_963),
    _stu_net_tuned("FeTA21", 1, 8, 58_165_960),
    _stu_net_tuned("BraTS21", 4, 5, 58_165_657, "Pools by 2 along all axes at every level."),
)


def _mis_fm(name: str, title: str, data: str, file: str, page: str) -> CheckpointSpec:
    """Return a pre-trained network of MIS-FM; it segments nothing until it is fine-tuned."""
    network, parameters = {
        "pct": ("pct-net", 45_289_554),
        "fmu": ("fmunet", 47_371_572),
    }[name[:3]]
    return CheckpointSpec(
        id=name,
        title=title,
        network=network,
        engine="mis-fm",
        purpose="Start for training on your own labels; as published it names no anatomy.",
        input="3D patches with one channel, 64 x 128 x 128 voxels",
        classes=f"none (pre-trained on {data})",
        code_licence=_APACHE,
        weights_licence=NOT_STATED,
        page=page,
        source="https://github.com/openmedlab/MIS-FM",
        file=file,
        parameters=parameters,
        paper="arXiv 2306.16925; IEEE TIP 34:6041-6052, 2025, doi 10.1109/TIP.2025.3610249",
    )


_MIS_FM_FOLDER = _DRIVE_FOLDER.format("13OQh2eM0QFnwBRwBcKCqhKa46CnDojrD")
_PRE_TRAINED: tuple[CheckpointSpec, ...] = (
    _mis_fm(
        "pct-net",
        "PCT-Net (CT10k)",
        "public CT, CT10k",
        "pctnet_ct10k_volf.pt",
        _MIS_FM_FOLDER,
    ),
    _mis_fm(
        "pct-net-2023",
        "PCT-Net (June 2023)",
        "private CT",
        "pctnet_pretrain.pt",
        _DRIVE_FILE.format("1jQc-2hhsp3EyZj54_KEJte85diUtW8Fg"),
    ),
    _mis_fm(
        "fmunet",
        "FMUNet (AbdomenCT-1K)",
        "AbdomenCT-1K",
        "fmunet_abk1k_volf.pt",
        _MIS_FM_FOLDER,
    ),
)


def _axon_seg(name: str, title: str) -> CheckpointSpec:
    """Return one of the six models of D-LMBmap's axon segmentation."""
    return CheckpointSpec(
        id=f"axon-seg-{name}",
        title=f"Axon-Seg, {title}",
        network="axon-seg",
        engine="axon-seg",
        purpose=f"Axons in light-sheet brains: {title}.",
        input="3D cubes of light-sheet microscopy, 128 x 128 x 128 voxels",
        classes="axon",
        code_licence="CC BY 4.0; parts from nnU-Net Apache-2.0",
        weights_licence="CC BY 4.0",
        page=_DRIVE_FOLDER.format("1vhuGGnnwYdZ_oDq2N0TOCqkUrrgOAC0l"),
        source="https://github.com/openmedlab/Axon-Seg",
        parameters=50_558_368,
        paper="Nature Methods 2023, doi 10.1038/s41592-023-01998-6",
        notes="The folder holds six models; the publisher's text names no file names.",
    )


_MICROSCOPY: tuple[CheckpointSpec, ...] = (
    _axon_seg("joint", "all types jointly"),
    _axon_seg("serotonergic-sparse", "serotonergic, sparse"),
    _axon_seg("serotonergic-dense", "serotonergic, dense"),
    _axon_seg("cerebellar-nuclei-sparse", "cerebellar nuclei, sparse"),
    _axon_seg("gabaergic-dense", "GABAergic, dense"),
    _axon_seg("dopaminergic-dense", "dopaminergic, dense"),
)


PUBLISHED: tuple[CheckpointSpec, ...] = (
    *_VOLUMES,
    *_WHOLE_BODY,
    *_SLICES,
    *_PRE_TRAINED,
    *_MICROSCOPY,
)
