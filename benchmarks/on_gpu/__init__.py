"""What `benchmarks/gpu.py` runs, section by section."""
