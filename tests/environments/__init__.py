"""The package in environments of its own: with one Lightning, the other, or both; with old and with new packages."""
