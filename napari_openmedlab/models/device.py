"""Where a network runs: device, precision, memory, and what to do when memory runs out."""
