"""Fine-tuning and pre-training on the user's own scans. No Qt, no napari.

``cases`` finds labelled volumes and says what it leaves out and why; ``settings`` holds what the
user may choose, ``plan`` what follows from it for these cases and this machine; ``run`` trains,
goes on after a crash and makes the finished model; ``loop`` is the training loop itself, which
pre-training shares; ``events`` is what a run tells while it works.
"""
