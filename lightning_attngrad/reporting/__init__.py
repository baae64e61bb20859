"""Figures of maps, and the loggers that they go to."""
