"""Numbers about maps and attention heads."""
