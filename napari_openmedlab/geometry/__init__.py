"""Grids, boxes, prompts and masks: NumPy only, no files, no models, no GUI."""
