"""Layouts are read back as TensorBoard reads them."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, Layout, MarginChartContent
from torch.utils.tensorboard import SummaryWriter

import lightning_attngrad as attngrad
from lightning_attngrad.reporting import loggers as loggers_module
from lightning_attngrad.reporting.board import Names, board_tag
from lightning_attngrad.reporting.layout import Charts, Margin, charts_of, edges_of, torch_layout, with_earlier_layout
from lightning_attngrad.reporting.loggers import layout_writer, log_layout
from tests.callbacks.small_runs import make_trainer

CHARTS: dict[str, Charts] = {
    "maps": {"spread": ("entropy",), "heads": ("head_entropy/",)},
    "rewrite": {"median": Margin("median_linf", "q25_linf", "q75_linf")},
}
OURS = ["attngrad/maps", "attngrad/rewrite", "attngrad"]
THEIRS = {"mine": {"losses": ["Multiline", ["train_loss", "val_loss"]]}}


def shown(directory: str | Path) -> Layout:
    """The layout that TensorBoard would show of this directory."""
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    (content,) = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
    return Layout.FromString(content)


def titles(directory: str | Path) -> list[str]:
    return [category.title for category in shown(directory).category]


def times_written(directory: str | Path) -> int:
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    return len(events.Tensors("custom_scalars__config__"))


def logger_in(directory: Path, **options: Any) -> TensorBoardLogger:
    return TensorBoardLogger(directory, name="", version="", **options)


# Which tags a chart takes ---------------------------------------------------------------------------------------


def lines(prefix: str = "") -> dict[str, list[str]]:
    """Expressions of each chart of lines."""
    layout = torch_layout(CHARTS, prefix)
    return {title: what for charts in layout.values() for title, (kind, what) in charts.items() if kind == "Multiline"}


def taken(title: str, tags: list[str], prefix: str = "") -> list[str]:
    """As TensorBoard does: matched from the start of a tag."""
    return [tag for tag in tags if any(re.match(expression, tag) for expression in lines(prefix)[title])]


def test_a_name_takes_that_scalar_alone() -> None:
    tags = [
        "attngrad_maps/entropy",
        "attngrad_secondary_maps/entropy",  # where it is no main number
        "attngrad_maps/entropy_step",
        "attngrad_late/maps/entropy",
        "my/attngrad_maps/entropy",
    ]
    assert taken("spread", tags) == tags[:2]


def test_a_name_that_ends_in_a_slash_takes_all_below() -> None:
    tags = [
        "attngrad_secondary_maps/head_entropy/net.blocks.0.attn",
        "attngrad_secondary_maps/head_entropy",
        "attngrad_late/head_entropy/0",
    ]
    assert taken("heads", tags) == tags[:1]


def test_what_all_monitors_log_shares_a_chart() -> None:
    tags = [board_tag(name, "seconds", "cost") for name in ("maps", "late/maps")]
    tags += ["attngrad_time/seconds_left/maps", "attngrad_maps/seconds", "my/seconds"]
    assert taken("seconds taken", tags) == tags[:2]


def test_a_prefix_is_no_regular_expression() -> None:
    tags = [
        "a.b-attngrad_maps/entropy",
        "a.b-attngrad_time/seconds/maps",
        "axb-attngrad_maps/entropy",
        "attngrad_maps/entropy",
    ]
    assert taken("spread", tags, "a.b-") == tags[:1]
    assert taken("seconds taken", tags, "a.b-") == tags[1:2]
    band = torch_layout(CHARTS, "a.b-")["a.b-attngrad/rewrite"]["median"]
    edges = [f"a.b-attngrad_secondary_rewrite/{name}_linf" for name in ("q25", "q75")]
    assert band == ["Margin", ["a.b-attngrad_rewrite/median_linf", *edges]]


def test_a_monitor_without_charts_has_no_category() -> None:
    assert list(torch_layout({"audit": {}})) == ["attngrad"]


def test_charts_do_not_depend_on_how_many_monitors_there_are() -> None:
    """Or TensorBoard would show the same chart twice for two runs."""
    few, many = torch_layout({"maps": CHARTS["maps"]}), torch_layout(CHARTS)
    assert few == {name: many[name] for name in few}


@pytest.mark.parametrize("norm", ["linf", "l2", "l0", "l0_patches"])
def test_distances_of_a_norm_have_their_band(norm: Any) -> None:
    charts = attngrad.RewriteRobustnessMonitor(norm=norm).charts()
    assert Margin(f"median_{norm}", f"q25_{norm}", f"q75_{norm}") in charts.values()


def test_where_only_main_numbers_are_logged_no_chart_is_empty() -> None:
    charts: Charts = {
        "one of two": ("entropy", "completeness_error"),
        "none": ("completeness_error",),
        "some below": ("ratio/",),
        "none below": ("head_entropy/",),
        "band": Margin("median", "low", "high"),
        "band of another": Margin("mean", "low", "high"),
    }
    left = charts_of(charts, Names("maps", ("entropy", "ratio/spearman", "median"), edges_of(charts)))
    assert left == {"one of two": ("entropy",), "some below": ("ratio/",), "band": charts["band"]}
    assert charts_of(charts, Names("maps")) == charts  # of a monitor that has not said which are main, all are


# What is there already ------------------------------------------------------------------------------------------


def test_it_is_written_once(tmp_path: Path) -> None:
    logger = logger_in(tmp_path, prefix="fold0")
    trainer = make_trainer(logger=logger)
    for _ in range(3):
        log_layout(trainer, CHARTS)
    assert titles(tmp_path) == [f"fold0-{name}" for name in OURS]
    assert times_written(tmp_path) == 1
    log_layout(make_trainer(logger=logger_in(tmp_path, prefix="fold0")), CHARTS)  # resumed into the same directory
    assert times_written(tmp_path) == 1
    log_layout(make_trainer(logger=logger_in(tmp_path / "new")), CHARTS)
    assert titles(tmp_path / "new") == OURS


def test_a_layout_of_the_users_own_stays(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.experiment.add_custom_scalars(THEIRS)  # and not yet in the file
    log_layout(make_trainer(logger=logger), CHARTS)
    assert titles(tmp_path) == ["mine", *OURS]
    assert list(shown(tmp_path).category[0].chart[0].multiline.tag) == ["train_loss", "val_loss"]


def test_one_that_comes_later_pushes_ours_aside_until_the_end_of_the_fit(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    trainer = make_trainer(logger=logger)
    log_layout(trainer, CHARTS)
    logger.experiment.add_custom_scalars(THEIRS)
    logger.experiment.flush()
    assert titles(tmp_path) == ["mine"]
    log_layout(trainer, CHARTS)
    assert titles(tmp_path) == ["mine", *OURS]


def test_what_add_custom_scalars_cannot_say_stays(tmp_path: Path) -> None:
    series = [MarginChartContent.Series(value=f"{name}/m", lower=f"{name}/a", upper=f"{name}/b") for name in "xy"]
    writer = SummaryWriter(str(tmp_path))
    summary = with_earlier_layout({"bands": {}}, str(tmp_path))
    theirs = Layout.FromString(summary.value[0].tensor.string_val[0])
    theirs.category[0].closed = True
    theirs.category[0].chart.append(Chart(title="two", margin=MarginChartContent(series=series)))
    summary.value[0].tensor.string_val[0] = theirs.SerializeToString()
    writer._get_file_writer().add_summary(summary)
    writer.close()
    log_layout(make_trainer(logger=logger_in(tmp_path)), CHARTS)
    assert shown(tmp_path).category[0] == theirs.category[0]
    assert titles(tmp_path) == ["bands", *OURS]


def test_a_chart_of_the_users_in_our_category_stays(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.experiment.add_custom_scalars({"attngrad/maps": {"spread": ["Multiline", ["mine"]]}})
    log_layout(make_trainer(logger=logger), CHARTS)
    (maps,) = [category for category in shown(tmp_path).category if category.title == "attngrad/maps"]
    assert [(chart.title, list(chart.multiline.tag)) for chart in maps.chart] == [
        ("spread", ["mine"]),
        ("spread", ["^attngrad_(secondary_)?maps/entropy$"]),
        ("heads", ["^attngrad_(secondary_)?maps/head_entropy/"]),
    ]


def test_it_is_found_behind_pictures_and_before_a_record_that_is_cut_off(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "[1]"))  # brackets: no pattern of file names
    picture = np.random.default_rng(0).integers(0, 255, (3, 900, 900), dtype=np.uint8)
    writer.add_image("noise", picture)
    writer.add_custom_scalars(THEIRS)
    writer.close()
    (file,) = (tmp_path / "[1]").iterdir()
    assert file.stat().st_size > 2**20
    with file.open("ab") as stream:  # a process that was killed while it wrote
        stream.write(struct.pack("<Q", 500) + b"\0" * 4 + b"custom_scalars__config__")
    summary = with_earlier_layout(torch_layout(CHARTS), str(tmp_path / "[1]"))
    assert [one.title for one in Layout.FromString(summary.value[0].tensor.string_val[0]).category] == ["mine", *OURS]


# Loggers --------------------------------------------------------------------------------------------------------


def test_other_loggers_are_skipped(tmp_path: Path) -> None:
    log_layout(make_trainer(logger=CSVLogger(tmp_path)), CHARTS)
    assert not list(tmp_path.rglob("*"))


def test_a_new_logger_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ChartLogger(CSVLogger): ...

    monkeypatch.setattr(loggers_module, "_LAYOUT_WRITERS", dict(loggers_module._LAYOUT_WRITERS))
    told = []

    @layout_writer("ChartLogger")
    def write(logger: Any, charts: Any) -> None:
        told.append(charts)

    log_layout(make_trainer(logger=ChartLogger(tmp_path)), CHARTS)
    assert told == [CHARTS]


def test_a_failure_is_named_once_and_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logger_in(tmp_path)
    monkeypatch.setattr(logger.experiment, "flush", lambda: 1 / 0)
    trainer = make_trainer(logger=logger)

    def write_twice() -> None:
        log_layout(trainer, CHARTS)
        log_layout(trainer, CHARTS)

    with pytest.warns(UserWarning, match=r"TensorBoardLogger: the layout of the charts .*ZeroDivisionError") as caught:
        write_twice()
    assert len([one for one in caught if "layout" in str(one.message)]) == 1
    monkeypatch.setattr(logger.experiment, "add_text", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"TensorBoardLogger: the text 'attngrad/summary' could not"):
        loggers_module.log_text(trainer, "attngrad/summary", "words", 0)


@pytest.mark.parametrize("option", [{"fast_dev_run": 2}, {"barebones": True}])
def test_trial_runs_get_none(tmp_path: Path, option: dict[str, Any]) -> None:
    options = {"enable_checkpointing": None, "logger": None, **option, "log_every_n_steps": None}
    trainer = make_trainer(default_root_dir=tmp_path, **options)
    log_layout(trainer, CHARTS)
    loggers_module.log_text(trainer, "attngrad/summary", "words", 0)
    assert not list(tmp_path.rglob("*"))


def test_pictures_behind_the_layout_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's reader checks every byte in Python, a second for 7 MB."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    logger = logger_in(tmp_path)
    trainer = make_trainer(logger=logger)
    log_layout(trainer, CHARTS)
    for step in range(3):
        logger.experiment.add_image("noise", np.full((3, 40, 40), step, dtype=np.uint8), step)
    read: list[bytes] = []
    real = RawEventFileLoader.Load
    monkeypatch.setattr(
        RawEventFileLoader, "Load", lambda self: (read.append(record) or record for record in real(self))
    )
    log_layout(trainer, CHARTS)
    assert [b"custom_scalars__config__" in record for record in read] == [False, True]  # the head, and the layout
    assert times_written(tmp_path) == 1
