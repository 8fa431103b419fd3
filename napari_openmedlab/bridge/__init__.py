"""Between napari's layers and the session."""
