"""Slow, obvious implementations written from the formulas, against which the package is tested."""
