"""The way from a validation loader to a figure is short enough to be read."""

from __future__ import annotations

from benchmarks.path_of_a_batch import files_on_the_way


def test_a_batch_passes_few_files() -> None:
    files = files_on_the_way()
    met = set().union(*files.values())
    assert met == {"read", "transferred", "explained", "written"}
    assert len(files) <= 23, sorted(files)  # four of them find once how the model runs, two trace its tokens
