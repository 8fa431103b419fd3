"""Axons in volumes larger than memory: lazy sources, block-wise runs, and what is made of them.

A run lives in one folder:

``run.json``
    What was asked: source (path, image, shape, dtype, fingerprint), region, voxel size, engine
    with options and provenance, intensity, threshold, core, halo, chunk. Written once, and again
    for another threshold.
``journal.jsonl``
    One line for each finished block, after its chunks are on the disk: its number, how many of
    its voxels are axon, seconds. Blocks are numbered along (z, y, x), x fastest.
    ``relabel`` and ``relabelled`` stand around the making of labels at another threshold; without
    the second, labels are of two thresholds. ``levels``: the coarser levels are made.
``axons.zarr``
    OME-Zarr 0.4 (Zarr 2): the probability, uint8 with 255 for 1, as levels ``0``, ``1`` ...; the
    labels, uint8 of 0 and 1, as ``labels/axons/0``, ``1`` ...  Only the region is stored; its
    translation in um puts it where it belongs. Chunks divide the cores, so no two blocks share
    one.

``store.Results(folder)`` reads all that: ``probability`` and ``labels`` (finest level, Zarr
arrays), ``spacing`` (um; 1 where it is not known), ``region`` (a Box of the source),
``blocks()`` (every core as a Box of the result). Other files of the folder (``skeleton.swc``,
``branches.csv``, ``density.nii.gz``) are made from these.
"""
