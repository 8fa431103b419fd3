"""Checkpoints: read safely, told apart by content, converted once, kept and verified."""
