"""Where numbers, figures and texts go: every logger of a Trainer, and files where a logger has no place for them.

Loggers are recognised by the names of their classes and base classes. So neither wandb nor mlflow needs to
be installed, and loggers of ``lightning.pytorch`` and of ``pytorch_lightning`` are treated alike. A new
logger is one function under `figure_writer`, one under `text_writer` if it can show text, and one under
`layout_writer` if curves can be put into charts.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lightning_attngrad.reporting.board import figure_tag
from lightning_attngrad.reporting.files import write_to
from lightning_attngrad.reporting.layout import Charts, torch_layout, with_earlier_layout

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from matplotlib.figure import Figure

    from lightning_attngrad.reporting.pictures import Picture

__all__ = [
    "FigureWriter",
    "LayoutWriter",
    "TextWriter",
    "figure_writer",
    "layout_writer",
    "log_directory",
    "log_figures",
    "log_layout",
    "log_scalars",
    "log_text",
    "logs_nothing",
    "places",
    "scalar_step",
    "text_writer",
]

T = TypeVar("T")
FigureWriter: TypeAlias = Callable[[Any, str, "Picture", int], None]
TextWriter: TypeAlias = Callable[[Any, str, str, int], None]
LayoutWriter: TypeAlias = Callable[[Any, Mapping[str, Charts]], None]

#: Shows cards in groups by the first part of their names.
_IN_GROUPS = "TensorBoardLogger"

_WRITERS: dict[str, FigureWriter] = {}
_TEXT_WRITERS: dict[str, TextWriter] = {}
_LAYOUT_WRITERS: dict[str, LayoutWriter] = {}
_warned: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def figure_writer(logger_class: str) -> Callable[[FigureWriter], FigureWriter]:
    """Register how figures reach a kind of logger.

    Args:
        logger_class: Name of the logger's class; classes derived from it are meant too, unless they have a
            writer of their own.

    Returns:
        A decorator for a function of the logger, the tag (``attngrad/<monitor>/<what>``), the
        :class:`~.pictures.Picture`, which has ``pixels`` and ``png``, and the step.

    Example:
        >>> @figure_writer("NotebookLogger")
        ... def write(logger, tag, picture, step):
        ...     logger.show(picture.pixels, title=f"{tag} at step {step}")
    """
    return _register(_WRITERS, logger_class)


def text_writer(logger_class: str) -> Callable[[TextWriter], TextWriter]:
    """Register how a text reaches a kind of logger.

    Args:
        logger_class: As for `figure_writer`.

    Returns:
        A decorator for a function of the logger, the tag (``attngrad/<what>``), the text, which keeps its line
        breaks and columns, and the step.
    """
    return _register(_TEXT_WRITERS, logger_class)


def layout_writer(logger_class: str) -> Callable[[LayoutWriter], LayoutWriter]:
    """Register how a kind of logger is told which curves share a chart.

    Args:
        logger_class: As for `figure_writer`.

    Returns:
        A decorator for a function of the logger and the charts of each monitor, by its name. It is called at the
        start and at the end of a fit, and writes only what is not there yet.
    """
    return _register(_LAYOUT_WRITERS, logger_class)


def _register(table: dict[str, T], logger_class: str) -> Callable[[T], T]:
    def register(writer: T) -> T:
        table[logger_class] = writer
        return writer

    return register


def log_figures(trainer: Trainer, figures: Mapping[str, Figure], step: int) -> None:
    """Hand figures to every logger of a Trainer; only the process of rank zero does anything.

    A logger that nobody has registered a writer for, and a Trainer without loggers, get PNG files ``<log
    directory>/<tag>/step-000123.png``, each complete from the moment that it is there. Nothing is written
    under ``fast_dev_run`` and ``barebones``. What a logger refuses is warned of once a run and logger, with
    the cause; the other loggers get their figures all the same.

    Args:
        trainer: Of ``lightning.pytorch`` or of ``pytorch_lightning``.
        figures: From tags, such as ``attngrad/maps/grid``, to figures.
        step: The step that they belong to: `scalar_step` gives that of the scalars of the same hook.
    """
    if not trainer.is_global_zero or logs_nothing(trainer):
        return
    from lightning_attngrad.reporting.pictures import Picture  # noqa: PLC0415  # matplotlib only where it draws

    for tag, figure in figures.items():
        picture = Picture.of(figure)
        filled: set[str] = set()  # two loggers of one directory share a file
        for logger in trainer.loggers:
            _write(trainer, logger, tag, picture, step, filled)
        if not trainer.loggers:
            _write(trainer, None, tag, picture, step, filled)


def log_scalars(
    trainer: Trainer, scalars: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None
) -> None:
    """Hand numbers to every logger, on the terms of `log_figures`; without a logger they go nowhere.

    What is infinite or NaN is handed on as it is. A logger that refuses it gets the other numbers, and one that
    fails altogether is warned of once a run, with the cause; the run goes on either way.

    Args:
        trainer: Of ``lightning.pytorch`` or of ``pytorch_lightning``.
        scalars: From names, such as ``attngrad/maps/entropy``, to Python floats.
        step: That they belong to.
        tags: What some of them are called in TensorBoard, by name: see :mod:`~.board`.
    """
    if not scalars or not trainer.is_global_zero or logs_nothing(trainer):
        return
    for logger in trainer.loggers:
        name = type(logger).__name__
        called = tags if tags and _is_a(logger, _IN_GROUPS) else {}
        numbers = {called.get(name, name): float(value) for name, value in scalars.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        try:
            logger.log_metrics(dict(numbers), step=step)
        except Exception as error:  # whatever a logger raises must not end a run
            try:
                if finite and len(finite) < len(numbers):
                    logger.log_metrics(dict(finite), step=step)
            except Exception as again:
                _warn_once(trainer, name, "numbers", f" of step {step}", again)
            else:
                refused = "infinite or NaN numbers" if len(finite) < len(numbers) else "numbers"
                _warn_once(trainer, name, refused, f" of step {step}", error)
        try:
            logger.save()
        except Exception as error:
            _warn_once(trainer, name, "numbers", f" of step {step}", error)


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Hand a text to every logger, on the terms of `log_figures`; files are ``<log directory>/<tag>.md``.

    Args:
        trainer: Of ``lightning.pytorch`` or of ``pytorch_lightning``.
        tag: Such as ``attngrad/summary``.
        text: Keeps its line breaks and columns.
        step: That it belongs to.
    """
    if not trainer.is_global_zero or logs_nothing(trainer):
        return
    for logger in _loggers(trainer):
        writer = _writer_of(logger, _TEXT_WRITERS)
        try:
            if writer is not None:
                writer(logger, tag, text, step)
            else:
                address = f"{_log_directory(trainer, logger).rstrip('/')}/{tag}.md"
                write_to(address, f"{_as_markdown(text)}\n".encode())
        except Exception as error:
            name = "text files" if writer is None else type(logger).__name__
            _warn_once(trainer, name, "text", f" {tag!r}", error)


def log_layout(trainer: Trainer, charts: Mapping[str, Charts]) -> None:
    """Tell loggers which curves share a chart; those that cannot be told are skipped.

    Args:
        trainer: Of ``lightning.pytorch`` or of ``pytorch_lightning``.
        charts: Of each monitor, by its name.
    """
    if not trainer.is_global_zero or logs_nothing(trainer):
        return
    for logger in trainer.loggers:
        writer = _writer_of(logger, _LAYOUT_WRITERS)
        try:
            if writer is not None:
                writer(logger, charts)
        except Exception as error:
            _warn_once(trainer, type(logger).__name__, "layout", " of the charts", error)


def places(trainer: Trainer) -> list[str]:
    """Where figures and texts go, in words: each logger, or the directory of the files that stand in for it."""
    found = []
    for logger in _loggers(trainer):
        if _writer_of(logger, _WRITERS) is None:
            where = f"{_short_path(_log_directory(trainer, logger))}, figures as PNG files"
        else:  # a run on a server has no directory
            directory = getattr(logger, "log_dir", None)
            where = _short_path(str(directory)) if directory else f"run {logger.version} of {logger.name}"
        found.append(where if logger is None else f"{type(logger).__name__}: {where}")
    return found


def log_directory(trainer: Trainer) -> str:
    """Where the files of a run are: the directory of its first logger, else that of the Trainer."""
    return _log_directory(trainer, _loggers(trainer)[0])


def scalar_step(trainer: Trainer) -> int:
    """The step on which Lightning puts the scalars that are logged with ``log`` in the hook that now runs.

    Lightning counts the batches that ended in an optimizer step, and raises the count only after the
    validation that follows such a batch: scalars land one step before ``trainer.global_step``. Those of the
    end of a training epoch, when the count has been raised, are put back by one; so are those of a checkpoint that is
    saved then.

    Where ``log("step", …)`` was called, all scalars of that moment land on its value instead. A callback's
    hook sees only the calls before it: not one in the same hook of the LightningModule, which runs later.
    Scalars of single validation batches (``on_step=True``) are put on the number of the batch and are not
    meant here.

    Args:
        trainer: Of ``lightning.pytorch`` or of ``pytorch_lightning``, at work.

    Returns:
        The step, 0 before the first.
    """
    # Lightning's own callbacks (LearningRateMonitor, DeviceStatsMonitor) read this count as well.
    step = int(trainer.fit_loop.epoch_loop._batches_that_stepped)
    if trainer.sanity_checking:
        return step
    logged = _logged_step(trainer)
    if logged is not None:
        return logged
    hook = getattr(trainer.lightning_module, "_current_fx_name", None)
    if hook == "on_save_checkpoint":  # which does not tell from which hook the checkpoint is saved
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        is_raised = not trainer.validating and progress.ready == progress.completed
    else:
        is_raised = hook in ("on_train_epoch_end", "on_train_end", "on_fit_end")
    return max(step - 1, 0) if is_raised else step


def _logged_step(trainer: Trainer) -> int | None:
    """Value of a scalar called "step" that is waiting to be logged."""
    results = trainer._results
    if results is None:
        return None
    on_step = trainer._logger_connector._first_loop_iter is not None
    found = None
    for _, result in results.valid_items():
        meta = result.meta
        if not meta.logger or meta.forked_name(on_step) != "step" or not result.is_tensor:
            continue
        if meta.dataloader_idx is not None and meta.add_dataloader_idx:
            continue  # it is called "step/dataloader_idx_0"
        # Read from the parts: computing it here would cache it too early and may be a collective operation.
        if on_step and meta.on_step:
            found = result._forward_cache
        elif not on_step and meta.on_epoch:
            found = result.value / result.cumulated_batch_size if meta.is_mean_reduction else result.value
    return None if found is None else int(found)


@figure_writer("TensorBoardLogger")
def _to_tensorboard(logger: Any, tag: str, picture: Picture, step: int) -> None:
    # Slow to import, and of use only where there is a TensorBoardLogger.
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]  # noqa: PLC0415

    # As ``add_image`` does, but for encoding the picture once more.
    image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.png)
    summary = Summary(value=[Summary.Value(tag=_prefixed(logger, figure_tag(tag)), image=image)])
    logger.experiment._get_file_writer().add_summary(summary, step)


@figure_writer("WandbLogger")
def _to_wandb(logger: Any, tag: str, picture: Picture, step: int) -> None:
    with _on_disk(picture, _file_name(step)) as path:  # copied by wandb before it comes back
        logger.log_image(key=tag, images=[str(path)], step=step)  # puts the logger's prefix before the key itself


@figure_writer("MLFlowLogger")
def _to_mlflow(logger: Any, tag: str, picture: Picture, step: int) -> None:
    with _on_disk(picture, _file_name(step)) as path:
        logger.experiment.log_artifact(logger.run_id, str(path), str(PurePosixPath(_prefixed(logger, tag))))


@text_writer("TensorBoardLogger")
def _text_to_tensorboard(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.add_text(_prefixed(logger, tag), _as_markdown(text), step)


@text_writer("WandbLogger")
def _text_to_wandb(logger: Any, tag: str, text: str, step: int) -> None:
    logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)


@text_writer("MLFlowLogger")
def _text_to_mlflow(logger: Any, tag: str, text: str, step: int) -> None:  # noqa: ARG001
    logger.experiment.log_text(logger.run_id, f"{_as_markdown(text)}\n", f"{_prefixed(logger, tag)}.md")


@layout_writer("TensorBoardLogger")
def _layout_to_tensorboard(logger: Any, charts: Mapping[str, Charts]) -> None:
    writer = logger.experiment
    writer.flush()  # a layout of the user's may still be on its way to the file
    summary = with_earlier_layout(torch_layout(charts, _prefixed(logger, "")), logger.log_dir)
    if summary is not None:
        # As Lightning does for hyperparameters. ``add_custom_scalars`` cannot say all that a layout of the user's may.
        writer._get_file_writer().add_summary(summary)
        writer.flush()


@figure_writer("DummyLogger")
def _to_nowhere(logger: Any, tag: str, picture: Picture, step: int) -> None:
    """The stand-in that Lightning puts in the place of loggers in trial runs."""


@text_writer("DummyLogger")
def _text_to_nowhere(logger: Any, tag: str, text: str, step: int) -> None:
    """Likewise."""


def logs_nothing(trainer: Any) -> bool:
    """Whether the user asked for a run that leaves nothing behind."""
    return bool(trainer.fast_dev_run or getattr(trainer, "barebones", False))


def _write(trainer: Trainer, logger: Any, tag: str, picture: Picture, step: int, filled: set[str]) -> None:
    """One figure to one logger; ``filled`` holds the directories that have its PNG file."""
    writer = _writer_of(logger, _WRITERS)
    try:
        if writer is not None:
            writer(logger, tag, picture, step)
        elif (directory := _log_directory(trainer, logger)) not in filled:
            filled.add(directory)
            _write_png(directory, tag, picture, step)
    except Exception as error:  # whatever a logger raises must not end a run
        name = "PNG files" if writer is None else type(logger).__name__
        _warn_once(trainer, name, "figure", f" {tag!r} of step {step}", error)


def _write_png(directory: str, tag: str, picture: Picture, step: int) -> None:
    write_to(f"{directory.rstrip('/')}/{tag}/{_file_name(step)}", picture.png)


@contextmanager
def _on_disk(picture: Picture, name: str) -> Iterator[Path]:
    """The picture as a file of this name, for loggers that take files; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(picture.png)
        yield path


def _log_directory(trainer: Trainer, logger: Any) -> str:
    """A logger's own directory of this run, or else the one in which Lightning puts its checkpoints."""
    log_directory, save_directory = getattr(logger, "log_dir", None), getattr(logger, "save_dir", None)
    if log_directory:
        return str(os.fspath(log_directory))
    if not save_directory:
        return os.fspath(trainer.default_root_dir)
    version = f"version_{logger.version}" if isinstance(logger.version, int) else logger.version
    parts = [os.fspath(save_directory), *(str(part) for part in (logger.name, version) if part)]
    return "/".join(parts)  # a path, or the address of an object store


def _loggers(trainer: Trainer) -> list[Any]:
    """None stands for the files that are written where there is no logger."""
    return list(trainer.loggers) or [None]


def _short_path(path: str) -> str:
    """From the working directory, where that is shorter."""
    return path if "://" in path else min(path.rstrip("/"), os.path.relpath(path), key=len)


def _writer_of(logger: Any, writers: Mapping[str, T]) -> T | None:
    return next((writers[base.__name__] for base in type(logger).__mro__ if base.__name__ in writers), None)


def _is_a(logger: Any, logger_class: str) -> bool:
    return any(base.__name__ == logger_class for base in type(logger).__mro__)


def _prefixed(logger: Any, tag: str) -> str:
    """The tag behind the prefix that the logger puts before the names of scalars."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}{tag}" if prefix else tag


def _file_name(step: int) -> str:
    return f"step-{step:06d}.png"


def _as_markdown(text: str) -> str:
    """A block that keeps line breaks and columns."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _warn_once(trainer: Trainer, name: str, kind: str, which: str, error: Exception) -> None:
    warned = _warned.setdefault(trainer, set())
    if f"{kind} {name}" in warned:
        return
    warned.add(f"{kind} {name}")
    warnings.warn(
        f"{name}: the {kind}{which} could not be written, {type(error).__name__}: {error}. "
        "Training goes on without; further failures of this kind are not reported in this run.",
        stacklevel=3,
    )
