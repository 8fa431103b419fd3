"""Templates, and the cohort they find structures in. No Qt, no torch, no napari."""
