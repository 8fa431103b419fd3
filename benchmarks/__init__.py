"""Measured on demand, never as tests: ``python -m benchmarks NAME``."""
