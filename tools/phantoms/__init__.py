"""The shapes behind the sample data; used by ``tools/make_samples.py`` only."""
