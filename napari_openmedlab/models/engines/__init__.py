"""One engine per module: pre- and post-processing around a network or algorithm."""
