"""Fine-tuning and pre-training on the user's own scans. No Qt, no napari."""
