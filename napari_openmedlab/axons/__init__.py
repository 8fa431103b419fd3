"""Light-sheet volumes larger than memory: plans, runs, skeletons, densities. No Qt, no torch."""
