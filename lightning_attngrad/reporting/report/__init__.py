"""The report of a run: what it keeps while it goes on, read back and written as one HTML file. Without Lightning."""
