"""Every logger is read back from what it wrote."""

from __future__ import annotations

import csv
import os
import runpy
import struct
import sys
import warnings
from collections import defaultdict

import fsspec
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from lightning_attngrad.reporting import loggers as loggers_module
from lightning_attngrad.reporting.loggers import figure_writer, log_figures, log_scalars, scalar_step

TAG = "attngrad/maps/grid"
ON_A_BOARD = "attngrad_maps/grid"  # what TensorBoard calls it


@pytest.fixture
def own_environment():
    """Puts back the environment variables that wandb and mlflow set for themselves."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def make_figure() -> Figure:
    return Figure(figsize=(0.4, 0.3), dpi=100)  # 40 × 30 pixels


class Model(L.LightningModule):
    def __init__(self, step_key: str | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.step_key = step_key

    def training_step(self, batch, batch_index):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_index):
        if self.step_key == "validation_step":
            self.log("step", float(100 + self.current_epoch))

    def on_validation_epoch_end(self):
        if self.step_key == "on_validation_epoch_end":
            self.log("step", float(100 + self.current_epoch))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(L.Callback):
    """Logs a scalar and a figure in the same hooks, as a monitor does."""

    def __init__(self) -> None:
        self.sanity_steps: list[int] = []
        self.end_steps: list[int] = []

    def _both(self, trainer, module, hook: str) -> None:
        if trainer.sanity_checking:
            self.sanity_steps.append(scalar_step(trainer))
            return
        module.log(f"scalar/{hook}", 1.0)
        log_figures(trainer, {f"figure/{hook}": make_figure()}, scalar_step(trainer))

    def on_validation_epoch_end(self, trainer, pl_module):
        self._both(trainer, pl_module, "on_validation_epoch_end")

    def on_test_epoch_end(self, trainer, pl_module):
        self._both(trainer, pl_module, "on_test_epoch_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self._both(trainer, pl_module, "on_train_epoch_end")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.fit_loop._should_accumulate():  # Lightning drops the scalars of other batches
            self._both(trainer, pl_module, "on_train_batch_end")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.end_steps.append(scalar_step(trainer))

    def on_train_end(self, trainer, pl_module):
        self.end_steps.append(scalar_step(trainer))


def loader(batches: int = 5) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(batches * 2, 2)), batch_size=2)


def make_trainer(path, logger=False, **options) -> L.Trainer:
    defaults = {
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    return L.Trainer(default_root_dir=path, logger=logger, **{**defaults, **options})


def read_events(folder) -> tuple[dict[str, list[int]], dict[str, list[tuple[int, int, int]]]]:
    """Steps of the scalars, and (step, width, height) of the images, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    images = {
        tag: [(event.step, *struct.unpack(">II", event.encoded_image_string[16:24])) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
    return scalars, images


def assert_steps_agree(folder) -> dict[str, list[int]]:
    """Scalars and figures of every hook lie on the same steps; returns them by hook."""
    scalars, images = read_events(folder)
    steps = {tag.removeprefix("figure/"): [step for step, _, _ in found] for tag, found in images.items()}
    for hook, found in steps.items():
        assert found == scalars[f"scalar/{hook}"], hook
    return steps


@pytest.mark.parametrize(
    ("options", "validation_steps", "epoch_steps"),
    [
        pytest.param({}, [4, 9], [4, 9], id="plain"),
        pytest.param({"val_check_interval": 0.5}, [1, 3, 6, 8], [4, 9], id="twice an epoch"),
        pytest.param({"accumulate_grad_batches": 2}, [2, 5], [2, 5], id="accumulated"),
        pytest.param(
            {"accumulate_grad_batches": 2, "val_check_interval": 3},
            [1, 4],
            [2, 5],
            id="accumulated, in between",
        ),
        pytest.param({"max_steps": 7, "max_epochs": -1}, [4], [4, 6], id="cut short"),
    ],
)
def test_figures_lie_on_the_steps_of_scalars_in_fit(tmp_path, options, validation_steps, epoch_steps):
    logger = TensorBoardLogger(tmp_path)
    recorder = Recorder()
    trainer = make_trainer(tmp_path, logger, callbacks=[recorder], **options)
    trainer.fit(Model(), loader(), loader(2))
    steps = assert_steps_agree(logger.log_dir)
    assert steps["on_train_epoch_end"] == epoch_steps
    assert len(steps["on_train_batch_end"]) == trainer.global_step
    assert steps["on_validation_epoch_end"] == validation_steps
    assert recorder.end_steps[-1] == epoch_steps[-1]


@pytest.mark.parametrize("where", ["validation_step", "on_validation_epoch_end"])
def test_a_logged_step_moves_figures_as_it_moves_scalars(tmp_path, where):
    logger = TensorBoardLogger(tmp_path)
    recorder = Recorder()
    make_trainer(tmp_path, logger, callbacks=[recorder]).fit(Model(where), loader(), loader(2))
    scalars, images = read_events(logger.log_dir)
    assert scalars["scalar/on_validation_epoch_end"] == [100, 101]
    if where == "validation_step":  # known when the callback's hook runs
        assert [step for step, _, _ in images["figure/on_validation_epoch_end"]] == [100, 101]
    assert recorder.end_steps[:2] == [100, 101]  # on_validation_end has seen all
    assert scalars["scalar/on_train_epoch_end"] == [4, 9]
    assert [step for step, _, _ in images["figure/on_train_epoch_end"]] == [4, 9]


def test_reading_a_logged_step_does_not_change_its_value(tmp_path):
    seen = []

    class Early(L.Callback):
        def on_validation_batch_end(self, trainer, *arguments):
            seen.append(scalar_step(trainer))

    class Growing(Model):
        def validation_step(self, batch, batch_index):
            self.log("step", float(10 * batch_index))

    logger = TensorBoardLogger(tmp_path)
    make_trainer(tmp_path, logger, callbacks=[Early(), Recorder()], max_epochs=1).fit(Growing(), loader(), loader(3))
    assert len(seen) == 3
    assert read_events(logger.log_dir)[0]["scalar/on_validation_epoch_end"] == [10]  # the mean of 0, 10 and 20


def test_sanity_check_is_step_zero_and_leaves_nothing(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    recorder = Recorder()
    trainer = make_trainer(tmp_path, logger, callbacks=[recorder], num_sanity_val_steps=1, max_epochs=1)
    trainer.fit(Model("validation_step"), loader(), loader(2))
    assert recorder.sanity_steps == [0]
    assert read_events(logger.log_dir)[1]["figure/on_validation_epoch_end"] == [(100, 40, 30)]


@pytest.mark.parametrize("task", ["validate", "test"])
@pytest.mark.parametrize("trained", [False, True])
def test_figures_lie_on_the_steps_of_scalars_outside_fit(tmp_path, task, trained):
    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(tmp_path, logger, callbacks=[Recorder()], max_epochs=1)
    model = Model()
    if trained:
        trainer.fit(model, loader())
    getattr(trainer, task)(model, loader(2), verbose=False)
    hook = {"validate": "on_validation_epoch_end", "test": "on_test_epoch_end"}[task]
    assert assert_steps_agree(logger.log_dir)[hook] == [5 if trained else 0]


def test_steps_go_on_after_a_resume(tmp_path):
    first = make_trainer(tmp_path, max_epochs=1)
    first.fit(Model(), loader(), loader(2))
    first.save_checkpoint(tmp_path / "one.ckpt")
    logger = TensorBoardLogger(tmp_path)
    make_trainer(tmp_path, logger, callbacks=[Recorder()]).fit(
        Model(), loader(), loader(2), ckpt_path=tmp_path / "one.ckpt"
    )
    assert assert_steps_agree(logger.log_dir)["on_validation_epoch_end"] == [9]


def test_pytorch_lightning_is_served_as_well(tmp_path):
    other = pytest.importorskip("pytorch_lightning")
    logger = other.loggers.TensorBoardLogger(tmp_path)
    trainer = other.Trainer(default_root_dir=tmp_path, logger=logger, accelerator="cpu", enable_progress_bar=False)
    log_figures(trainer, {TAG: make_figure()}, 3)
    assert scalar_step(trainer) == 0
    logger.experiment.flush()
    assert read_events(logger.log_dir)[1] == {ON_A_BOARD: [(3, 40, 30)]}


def test_tensorboard_prefix_stands_before_figures_too(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="run")
    log_figures(make_trainer(tmp_path, logger), {TAG: make_figure()}, 3)
    logger.log_metrics({"attngrad/maps/entropy": 1.0}, 3)
    logger.experiment.flush()
    scalars, images = read_events(logger.log_dir)
    assert images == {f"run-{ON_A_BOARD}": [(3, 40, 30)]}
    assert scalars == {"run-attngrad/maps/entropy": [3]}


def png_files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_no_logger_gets_png_files(tmp_path):
    figure = make_figure()
    figure.set_facecolor("#ff8000")
    log_figures(make_trainer(tmp_path), {TAG: figure}, 123)
    assert png_files(tmp_path) == [f"{TAG}/step-000123.png"]
    picture = imread(tmp_path / TAG / "step-000123.png")
    assert picture.shape[:2] == (30, 40)
    np.testing.assert_allclose(picture[0, 0, :3], [1.0, 128 / 255, 0.0], atol=1e-6)


def test_csv_logger_gets_png_files_in_its_own_directory(tmp_path):
    logger = CSVLogger(tmp_path, name="run")
    make_trainer(tmp_path, logger, callbacks=[Recorder()]).fit(Model(), loader(), loader(2))
    folder = tmp_path / "run" / "version_0"
    files = sorted(path.name for path in (folder / "figure" / "on_validation_epoch_end").iterdir())
    assert files == ["step-000004.png", "step-000009.png"]
    rows = csv.DictReader((folder / "metrics.csv").open())
    assert [row["step"] for row in rows if row["scalar/on_validation_epoch_end"]] == ["4", "9"]


class OwnLogger(Logger):
    """A user's logger, with as little as Lightning demands."""

    def __init__(self, save_dir=None, version=3) -> None:
        super().__init__()
        self._save_dir, self._version = save_dir, version

    name = property(lambda self: "own")
    version = property(lambda self: self._version)
    save_dir = property(lambda self: self._save_dir)

    def log_metrics(self, metrics, step=None) -> None: ...

    def log_hyperparams(self, params, *args, **kwargs) -> None: ...


@pytest.mark.parametrize(
    ("save_dir", "version", "expected"),
    [
        ("kept", 3, "kept/own/version_3"),
        ("kept", "a", "kept/own/a"),
        ("kept", None, "kept/own"),
        (None, 3, ""),
    ],
)
def test_an_unknown_logger_gets_png_files(tmp_path, save_dir, version, expected):
    logger = OwnLogger(str(tmp_path / save_dir) if save_dir else None, version)
    log_figures(make_trainer(tmp_path, logger), {TAG: make_figure()}, 0)
    assert png_files(tmp_path) == [f"{expected}/{TAG}/step-000000.png".lstrip("/")]


def test_png_files_in_an_object_store(tmp_path):
    log_figures(make_trainer(tmp_path, OwnLogger("memory://bucket/runs")), {TAG: make_figure()}, 0)
    stored = fsspec.filesystem("memory").cat(f"/bucket/runs/own/version_3/{TAG}/step-000000.png")
    assert struct.unpack(">II", stored[16:24]) == (40, 30)
    assert png_files(tmp_path) == []


def test_png_files_are_never_half_written(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    log_figures(trainer, {TAG: make_figure()}, 1)
    before = (tmp_path / TAG / "step-000001.png").read_bytes()

    def full_disk(path, content):
        path.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.warns(UserWarning, match=r"PNG files: the figure .* OSError: No space left on device"):
        log_figures(trainer, {TAG: make_figure()}, 1)
    assert png_files(tmp_path) == [f"{TAG}/step-000001.png"]
    assert (tmp_path / TAG / "step-000001.png").read_bytes() == before


def test_a_failing_logger_is_named_once_and_the_others_are_served(tmp_path, monkeypatch):
    class FailingLogger(OwnLogger): ...

    monkeypatch.setattr(loggers_module, "_WRITERS", dict(loggers_module._WRITERS))

    @figure_writer("FailingLogger")
    def fail(logger, tag, picture, step):
        raise ConnectionError("server is away")

    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(tmp_path, [FailingLogger(), logger])
    with pytest.warns(UserWarning, match=r"FailingLogger: .*attngrad/maps/grid.* ConnectionError: server is away"):
        log_figures(trainer, {TAG: make_figure()}, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_figures(trainer, {TAG: make_figure()}, 2)
    logger.experiment.flush()
    assert read_events(logger.log_dir)[1] == {ON_A_BOARD: [(1, 40, 30), (2, 40, 30)]}
    with pytest.warns(UserWarning, match="server is away"):  # another run hears of it again
        log_figures(make_trainer(tmp_path, FailingLogger()), {TAG: make_figure()}, 1)


def test_training_goes_on_where_nothing_can_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the place of a directory")
    trainer = make_trainer(tmp_path, OwnLogger(str(blocked)), callbacks=[Recorder()])
    with pytest.warns(UserWarning, match="PNG files: .* could not be written") as caught:
        trainer.fit(Model(), loader(), loader(2))
    assert len([one for one in caught if "could not be written" in str(one.message)]) == 1
    assert trainer.global_step == 10


def test_a_new_logger_is_one_function(tmp_path, monkeypatch):
    class NotebookLogger(OwnLogger): ...

    class DerivedLogger(NotebookLogger): ...

    monkeypatch.setattr(loggers_module, "_WRITERS", dict(loggers_module._WRITERS))
    shown = defaultdict(list)

    @figure_writer("NotebookLogger")
    def write(logger, tag, picture, step):
        shown[tag].append((picture.pixels.shape, picture.pixels.dtype, step))

    log_figures(make_trainer(tmp_path, DerivedLogger()), {TAG: make_figure()}, 7)
    assert shown == {TAG: [((30, 40, 3), np.uint8, 7)]}
    assert png_files(tmp_path) == []


@pytest.mark.parametrize("logger", [False, True])
@pytest.mark.parametrize("option", [{"fast_dev_run": 2}, {"barebones": True}])
def test_trial_runs_leave_nothing(tmp_path, logger, option):
    trainer = L.Trainer(default_root_dir=tmp_path, logger=logger and "barebones" not in option, **option)
    log_figures(trainer, {TAG: make_figure()}, 0)
    assert png_files(tmp_path) == []


def test_lightnings_stand_in_logger_takes_nothing(tmp_path):
    from lightning.pytorch.loggers.logger import DummyLogger

    log_figures(make_trainer(tmp_path, DummyLogger()), {TAG: make_figure()}, 0)
    assert png_files(tmp_path) == []


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer), "is_global_zero", property(lambda self: False))
    log_figures(trainer, {TAG: make_figure()}, 0)
    assert png_files(tmp_path) == []


def test_wandb(tmp_path, own_environment, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, prefix="run")
    logged = []
    real = logger.experiment.log
    monkeypatch.setattr(logger.experiment, "log", lambda data, **options: (logged.append(data), real(data, **options)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be written.*")
        log_figures(make_trainer(tmp_path, logger), {TAG: make_figure()}, 5)
    assert [sorted(data) for data in logged] == [[f"run-{TAG}", "trainer/global_step"]]
    assert logged[0]["trainer/global_step"] == 5
    (picture,) = tmp_path.rglob("media/images/**/*.png")
    assert imread(picture).shape[:2] == (30, 40)
    logger.experiment.finish()
    wandb.teardown()  # ends its helper process
    assert list(tmp_path.rglob("*.wandb"))


def test_mlflow(tmp_path, own_environment, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow 3 asks for it; no server, no database
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'store'}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be written.*")
        log_figures(make_trainer(tmp_path, logger), {TAG: make_figure()}, 5)
    client = logger.experiment
    assert [item.path for item in client.list_artifacts(logger.run_id, TAG)] == [f"{TAG}/step-000005.png"]
    picture = client.download_artifacts(logger.run_id, f"{TAG}/step-000005.png", str(tmp_path))
    assert imread(picture).shape[:2] == (30, 40)


def test_wandb_and_mlflow_need_not_be_installed(tmp_path, monkeypatch):
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)  # any import of it raises ImportError
    fresh = runpy.run_path(loggers_module.__file__)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be written.*")
        fresh["log_figures"](make_trainer(tmp_path, CSVLogger(tmp_path)), {TAG: make_figure()}, 1)
    assert png_files(tmp_path) == [f"lightning_logs/version_0/{TAG}/step-000001.png"]


# Numbers ----------------------------------------------------------------------------------------------------------


class Ledger(OwnLogger):
    """Keeps what it is given, and may refuse some of it."""

    def __init__(self, refuses=lambda metrics: False, saves=True) -> None:
        super().__init__()
        self.refuses, self.saves = refuses, saves
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None) -> None:
        if self.refuses(metrics):
            raise ConnectionError("server is away")
        self.entries.append((step, metrics))

    def save(self) -> None:
        if not self.saves:
            raise OSError("No space left on device")


def has_infinity(metrics) -> bool:
    return not np.isfinite(list(metrics.values())).all()


def test_every_logger_gets_python_floats_on_the_step(tmp_path):
    ledger, board, lines = Ledger(), TensorBoardLogger(tmp_path, prefix="run"), CSVLogger(tmp_path, name="csv")
    trainer = make_trainer(tmp_path, [ledger, board, lines])
    tags = {"attngrad/maps/entropy": "attngrad_maps/entropy"}
    log_scalars(trainer, {"attngrad/maps/entropy": np.float32(0.5), "attngrad/maps/seconds": 2}, 3, tags)
    assert ledger.entries == [(3, {"attngrad/maps/entropy": 0.5, "attngrad/maps/seconds": 2.0})]
    assert {type(value) for value in ledger.entries[0][1].values()} == {float}
    board.experiment.flush()
    assert read_events(board.log_dir)[0] == {"run-attngrad_maps/entropy": [3], "run-attngrad/maps/seconds": [3]}
    (row,) = csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open())
    assert (row["step"], row["attngrad/maps/entropy"]) == ("3", "0.5")


def test_infinite_and_nan_numbers_are_handed_on(tmp_path):
    ledger = Ledger()
    log_scalars(make_trainer(tmp_path, ledger), {"a": float("inf"), "b": float("nan"), "c": 1.0}, 0)
    ((_, entry),) = ledger.entries
    np.testing.assert_array_equal([entry["a"], entry["b"], entry["c"]], [np.inf, np.nan, 1.0])


def test_a_logger_that_cannot_take_infinite_numbers_gets_the_others_and_is_named_once(tmp_path):
    ledger = Ledger(refuses=has_infinity)
    trainer = make_trainer(tmp_path, ledger)
    with pytest.warns(UserWarning, match=r"Ledger: the infinite or NaN numbers of step 4 .*server is away"):
        log_scalars(trainer, {"a": float("inf"), "c": 1.0}, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_scalars(trainer, {"a": float("nan"), "c": 2.0}, 5)
        log_scalars(trainer, {"a": float("nan")}, 6)
    assert ledger.entries == [(4, {"c": 1.0}), (5, {"c": 2.0})]


def test_a_logger_that_fails_on_numbers_is_named_once_with_the_cause_and_the_run_goes_on(tmp_path):
    broken, kept = Ledger(refuses=lambda metrics: "attngrad/maps/entropy" in metrics), Ledger()

    class Numbers(L.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            log_scalars(trainer, {"attngrad/maps/entropy": 0.5, "attngrad/rewrite/median": float("inf")}, 7)

    trainer = make_trainer(tmp_path, [broken, kept], callbacks=[Numbers()], max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Model(), loader())
    said = [str(one.message) for one in caught if "could not be written" in str(one.message)]
    assert len(said) == 1
    cause = "ConnectionError: server is away"
    assert said[0].startswith(f"Ledger: the numbers of step 7 could not be written, {cause}")
    assert trainer.global_step == 5
    assert len([entry for entry in kept.entries if "attngrad/maps/entropy" in entry[1]]) == 5


def test_a_logger_that_fails_to_save_is_named_as_well(tmp_path):
    with pytest.warns(UserWarning, match="Ledger: the numbers of step 7 .* OSError: No space left on device"):
        log_scalars(make_trainer(tmp_path, Ledger(saves=False)), {"a": 0.5}, 7)


@pytest.mark.parametrize("option", [{"fast_dev_run": 2}, {"barebones": True}])
def test_trial_runs_and_other_ranks_get_no_numbers(tmp_path, monkeypatch, option):
    ledger = Ledger()
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, **option)
    monkeypatch.setattr(type(trainer), "loggers", [ledger])
    log_scalars(trainer, {"a": 1.0}, 0)
    other = make_trainer(tmp_path)
    monkeypatch.setattr(type(other), "is_global_zero", property(lambda self: False))
    log_scalars(other, {"a": 1.0}, 0)
    assert ledger.entries == []


def test_a_picture_is_encoded_once_for_all_loggers(tmp_path, monkeypatch):
    from PIL import Image

    saved = []
    real = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *a, **k: (saved.append(self.size), real(self, *a, **k))[1])
    board, lines = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path, name="csv")
    log_figures(make_trainer(tmp_path, [board, lines, OwnLogger(str(tmp_path / "own"))]), {TAG: make_figure()}, 2)
    board.experiment.flush()
    assert saved == [(40, 30)]
    events = EventAccumulator(str(board.log_dir), size_guidance={"images": 0})
    events.Reload()
    (image,) = events.Images(ON_A_BOARD)
    files = {path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert files == {image.encoded_image_string}
