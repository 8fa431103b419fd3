"""SAM-Med3D: one click, one 3D mask."""
