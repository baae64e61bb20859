"""What the maps cost, and what other libraries' maps cost: ``python -m benchmarks.maps``."""
