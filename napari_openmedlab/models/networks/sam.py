"""SAM and MedSAM: segment_anything's networks, for batches of slices and on fused attention.

The layers are those of the package segment-anything 1.0; attention and the mask decoder's
batching are replaced (:mod:`.sam_attention`, :class:`SliceMaskDecoder`). State dicts equal the
published ``sam_vit_b_01ec64.pth``, ``sam_vit_l_0b3195.pth``, ``sam_vit_h_4b8939.pth`` and
``medsam_vit_b.pth`` in keys, order and shapes.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from napari_openmedlab.models.networks.sam_attention import EncoderBlock, TokenAttention

__all__ = [
    "SliceMaskDecoder",
    "SliceSam",
    "build_medsam",
    "build_vit_b",
    "build_vit_h",
    "build_vit_l",
    "vit_b",
]

_PATCH = 16
_WIDTH = 256
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
_MODELING = "_openmedlab_segment_anything_modeling"
_loading = threading.Lock()


class SliceMaskDecoder(nn.Module):
    """SAM's mask decoder, except that image ``i`` of a batch belongs to prompt set ``i``.

    segment_anything's own decoder pairs every image with every prompt set. For one image both
    give the same numbers.

    Parameters
    ----------
    original : torch.nn.Module
        segment_anything's mask decoder; its layers are taken over.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        for name, layer in original.named_children():  # in the published order
            self.add_module(name, layer)
        transformer: Any = self.transformer
        names = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for layer in transformer.layers:
            for name in names:
                setattr(layer, name, TokenAttention(getattr(layer, name)))
        transformer.final_attn_token_to_image = TokenAttention(
            transformer.final_attn_token_to_image
        )

    def forward(self, embeddings: Any, image_pe: Any, sparse: Any, dense: Any) -> tuple[Any, Any]:
        """Predict all four masks.

        Parameters
        ----------
        embeddings : torch.Tensor
            (B, 256, g, g) or (1, 256, g, g).
        image_pe : torch.Tensor
            (1, 256, g, g), the positional encoding of the grid.
        sparse : torch.Tensor
            (B, tokens, 256) or (1, tokens, 256); tokens may be 0.
        dense : torch.Tensor
            (B, 256, g, g) or (1, 256, g, g).

        Returns
        -------
        masks : torch.Tensor
            Logits (B, 4, 4g, 4g): first the mask for unambiguous prompts, then the three
            candidates.
        scores : torch.Tensor
            (B, 4), the predicted intersection over union.

        Raises
        ------
        ValueError
            If the batch sizes differ and none is 1.
        """
        image = embeddings + dense
        batch = _common_batch(len(image), len(sparse))
        parts: Any = self
        own = torch.cat([parts.iou_token.weight, parts.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), sparse.expand(batch, -1, -1)], dim=1)
        image = image.expand(batch, -1, -1, -1)
        answers, stream = parts.transformer(image, image_pe.expand_as(image), tokens)
        stream = stream.transpose(1, 2).reshape(image.shape)
        upscaled = parts.output_upscaling(stream)
        kernels = torch.stack(
            [
                head(answers[:, 1 + index])
                for index, head in enumerate(parts.output_hypernetworks_mlps)
            ],
            dim=1,
        )
        masks = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return masks, parts.iou_prediction_head(answers[:, 0])


class SliceSam(nn.Module):
    """Image encoder, prompt encoder and mask decoder of a SAM for batches of 2D images.

    Attributes
    ----------
    image_size : int
        Side of the square input in pixels, 1024 or 256.
    grid : int
        Side of the embedding, ``image_size / 16``.
    pixel_mean, pixel_std : torch.Tensor
        (3, 1, 1), grey values 0..255; SAM, FT-SAM and SAM-Med2D take ``(image - mean) / std``,
        MedSAM takes values 0..1 and neither. Not part of any checkpoint.

    Parameters
    ----------
    image_encoder, prompt_encoder : torch.nn.Module
        segment_anything's; the encoder's blocks already replaced.
    mask_decoder : SliceMaskDecoder
        The decoder.
    image_size : int
        Side of the input in pixels.
    """

    pixel_mean: Any
    pixel_std: Any

    def __init__(
        self,
        image_encoder: Any,
        prompt_encoder: Any,
        mask_decoder: SliceMaskDecoder,
        image_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size // _PATCH
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        for name, values in (("pixel_mean", _PIXEL_MEAN), ("pixel_std", _PIXEL_STD)):
            # Real also in a build on the meta device: no checkpoint brings them.
            constant = torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def encode(self, images: Any) -> Any:
        """Embed images that have been through the model's pre-processing.

        Parameters
        ----------
        images : torch.Tensor
            Float (B, 3, image_size, image_size).

        Returns
        -------
        torch.Tensor
            (B, 256, grid, grid).
        """
        return self.image_encoder(images)

    def decode(
        self,
        embeddings: Any,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
    ) -> tuple[Any, Any]:
        """Predict masks for one prompt set an image, or several prompt sets on one image.

        Each batch size is B or 1; what has 1 serves all. Coordinates are in pixels of the
        input (0..image_size), x to the right, y down; pixel centres at whole numbers.

        Parameters
        ----------
        embeddings : torch.Tensor
            (B or 1, 256, grid, grid) of :meth:`encode`.
        points : torch.Tensor, optional
            (B or 1, N, 2) as x, y.
        labels : torch.Tensor, optional
            (B or 1, N): 1 inside the object, 0 outside, -1 no point (to fill up shorter sets).
            Comes with ``points``.
        boxes : torch.Tensor, optional
            (B or 1, 4) as x0, y0, x1, y1: one box a prompt set.
        masks : torch.Tensor, optional
            (B or 1, 1, 4 * grid, 4 * grid): logits of an earlier answer for SAM, their sigmoid
            for FT-SAM and SAM-Med2D. MedSAM was not trained with it, nor with points.

        Returns
        -------
        masks : torch.Tensor
            Logits (B, 4, 4 * grid, 4 * grid). The first is the single-mask answer (MedSAM's
            only one), the others are candidates: the published SAM-Med2D takes the one with the
            best score.
        scores : torch.Tensor
            (B, 4), the predicted intersection over union.

        Raises
        ------
        ValueError
            Without any prompt, for points without labels or the reverse, or if batch sizes
            differ and none is 1.
        """
        if (points is None) != (labels is None):
            raise ValueError("points and labels come together")
        if points is None and boxes is None and masks is None:
            raise ValueError("there is no prompt: give points, boxes or masks")
        given = [len(item) for item in (points, labels, boxes, masks) if item is not None]
        prompts = _common_batch(*given)
        _common_batch(prompts, len(embeddings))
        points, labels, boxes = (_spread(item, prompts) for item in (points, labels, boxes))
        # Positions would lose whole pixels in half precision; this part costs next to nothing.
        with torch.autocast(embeddings.device.type, enabled=False):
            pair = None if points is None else (points, labels)
            sparse, dense = self.prompt_encoder(points=pair, boxes=boxes, masks=masks)
            image_pe = self.prompt_encoder.get_dense_pe()
        found: tuple[Any, Any] = self.mask_decoder(embeddings, image_pe, sparse, dense)
        return found

    def forward(
        self,
        images: Any,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
    ) -> tuple[Any, Any]:
        """Return what :meth:`decode` returns for the embeddings of the images."""
        return self.decode(self.encode(images), points, labels, boxes, masks)


def build_vit_b() -> SliceSam:
    """Build SAM ViT-B (1024 pixels, 314 entries, 93.7 M parameters)."""
    return vit_b(1024)


def build_vit_l() -> SliceSam:
    """Build SAM ViT-L (1024 pixels)."""
    return _build(1024, width=1024, depth=24, heads=16)


def build_vit_h() -> SliceSam:
    """Build SAM ViT-H (1024 pixels)."""
    return _build(1024, width=1280, depth=32, heads=16)


def build_medsam() -> SliceSam:
    """Build MedSAM: SAM ViT-B's network; only weights and pre-processing differ."""
    return vit_b(1024)


def vit_b(image_size: int) -> SliceSam:
    """Build the ViT-B form for square images of ``image_size`` pixels (a multiple of 16)."""
    return _build(image_size, width=768, depth=12, heads=12)


def _build(image_size: int, width: int, depth: int, heads: int) -> SliceSam:
    """Put segment_anything's parts together; four blocks, evenly spread, attend globally."""
    parts = _modeling()
    grid = image_size // _PATCH
    image_encoder = parts.ImageEncoderViT(
        img_size=image_size,
        patch_size=_PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        out_chans=_WIDTH,
        norm_layer=_EncoderNorm,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=tuple(range(depth // 4 - 1, depth, depth // 4)),
    )
    image_encoder.blocks = nn.ModuleList(EncoderBlock(block) for block in image_encoder.blocks)
    prompt_encoder = parts.PromptEncoder(
        embed_dim=_WIDTH,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    transformer = parts.TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=2048)
    decoder = parts.MaskDecoder(transformer_dim=_WIDTH, transformer=transformer)
    return SliceSam(image_encoder, prompt_encoder, SliceMaskDecoder(decoder), image_size)


class _EncoderNorm(nn.LayerNorm):
    """The encoder's layer norm: epsilon 1e-6, not torch's 1e-5."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


def _common_batch(*sizes: int) -> int:
    """Return the batch size to which all others, being equal or 1, are repeated."""
    batch = max(sizes)
    if any(size not in (1, batch) for size in sizes):
        raise ValueError(f"batch sizes must be equal or 1, not {sizes}")
    return batch


def _spread(item: Any, batch: int) -> Any:
    """Repeat a prompt for the batch; None stays None."""
    return None if item is None else item.expand(batch, *item.shape[1:])


def _modeling() -> ModuleType:
    """Return segment_anything's subpackage ``modeling`` without importing the package.

    The package's own ``__init__`` imports torchvision, which the networks don't need, and whose
    version has to fit torch's to the letter. So the subpackage, which needs torch only, is
    loaded by itself under a private name, once a process.

    Raises
    ------
    ImportError
        If segment-anything is not installed.
    """
    with _loading:
        known = sys.modules.get(_MODELING)
        if known is not None:
            return known
        package = importlib.util.find_spec("segment_anything")  # finds it, runs nothing of it
        root = Path(package.origin).parent / "modeling" if package and package.origin else None
        if root is None or not root.is_dir():
            raise ImportError(
                "SAM, MedSAM and SAM-Med2D need the package segment-anything: "
                "pip install 'napari-openmedlab[models]'"
            )
        spec = importlib.util.spec_from_file_location(
            _MODELING, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None  # a .py file always has a loader
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_MODELING] = module  # its own relative imports look here
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_MODELING]
            raise
        return module
