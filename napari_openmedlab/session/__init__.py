"""The state of one annotation job; no Qt, no torch, no napari."""
