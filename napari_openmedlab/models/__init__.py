"""Engines and what they are made of; no Qt, no napari."""
