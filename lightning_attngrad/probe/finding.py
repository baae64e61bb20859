"""How the model of a run is to be run on the probe's images: found by trying, or asked for in one message."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch import nn

from lightning_attngrad.probe.attention_parts import attention_parts
from lightning_attngrad.probe.probe_set import ProbeSet
from lightning_attngrad.probe.resolve import ProbeInputError, describe, entries_of, follow_key
from lightning_attngrad.probe.samples import Path, Samples, path_in_words, path_to
from lightning_attngrad.probe.sharing import PartTooLargeError, Processes
from lightning_attngrad.probe.trial import Trial, Tried
from lightning_attngrad.probe.ways import (
    PLAIN_WAY,
    Way,
    looks_like_labels,
    signature_in_words,
    takes_one_container,
    way_of_function,
    ways_of,
)

#: So many ways and parts are named in a message.
_NAMED = 6


class NoWayError(ProbeInputError):
    """The model cannot be run on the probe's images; the message shows what there is, and what to write."""


def find_way(trainer: pl.Trainer, pl_module: pl.LightningModule, model: nn.Module, probe: ProbeSet) -> tuple[Way, str]:
    """The plainest way in which the model runs on the images; a collective operation, which leaves no trace.

    ``model(images)`` where that works. Else what the signature of its ``forward`` and the batch permit: keywords by
    the names of the batch, several of its entries in their order, a list of views, the whole batch. Each is tried on
    two samples and on one alone, of which it has to say the same.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        model: the part of it that is explained.
        probe: of which the images are frozen.

    Returns:
        The way, and what the user should know about it.

    Raises:
        ProbeInputError: if there is none.
    """
    processes = Processes.of(trainer)

    def trial(images_at_most: int = 2) -> Trial:
        images, _ = probe.to_device(trainer, pl_module)
        return Trial(trainer, pl_module, model, images[:images_at_most], probe.are_bytes)

    own: Any = probe.settings.forward  # imported by the settings, where it was a path
    if own is not None:
        way = way_of_function(own)
        if way.needs_batch:
            probe.keep_batches(trainer)
        else:
            probe.leave_batches()
        processes.together(lambda: _try_own(way, trial(), probe))
        return way, ""
    plain = Tried(PLAIN_WAY, "its argument is annotated as a batch or a list")
    if not takes_one_container(model):
        try:
            plain = processes.together(lambda: trial().of(PLAIN_WAY))
        except PartTooLargeError:  # two at once: an evaluation then goes on with one by one as well
            garbage_collection_cuda()
            plain = processes.together(lambda: trial(1).of(PLAIN_WAY))
    if all(processes.gather(plain.works)):
        probe.leave_batches()
        return PLAIN_WAY, ""
    probe.keep_batches(trainer)
    way, said = processes.together(lambda: _search(trial(), probe, plain))
    if len(set(processes.gather(way.words))) > 1:
        kind = type(model).__name__
        raise NoWayError(f"model: the processes of this run differ in how {kind} runs; say it: ProbeImages(forward=…)")
    return way, said


def _try_own(way: Way, trial: Trial, probe: ProbeSet) -> None:
    if not way.needs_batch and not trial.are_bytes:  # nothing to be found out that an evaluation does not tell
        return
    tried = trial.of(way, probe.samples)
    if tried.error:
        raise NoWayError(
            f"forward: {way.words} fails on the first samples of the probe: {tried.error}. model is "
            f"{type(trial.model).__name__}, images is {describe(trial.images)}, and batch is "
            f"{describe(_first_samples(trial, probe.samples), depth=3)}"
        )


def _search(trial: Trial, probe: ProbeSet, plain: Tried) -> tuple[Way, str]:
    """The first of all ways but ``model(images)`` that works."""
    samples, failed = probe.samples, [plain]
    if samples is not None:
        target = _where(samples, probe.settings.target_key)
        for way in ways_of(trial.model, samples.batch, samples.path, target, samples.size):
            tried = trial.of(way, samples)
            if tried.works:
                return way, _said_of(trial.model, way, samples)
            failed.append(tried)
    if not plain.error:  # it runs, and an objective may make something of its output
        return PLAIN_WAY, ""
    raise NoWayError(_nothing_fits(trial, probe, failed))


def _where(samples: Samples, key: Any) -> Path | None:
    return None if key is None else path_to(samples.batch, follow_key(samples.batch, key, "target_key"))


def _said_of(model: nn.Module, way: Way, samples: Samples) -> str:
    others = ", and all else is as the probe's samples have it" if way.needs_batch else ""
    return (
        f"{type(model).__name__} is run as {way.words}; the images that are explained are "
        f"{path_in_words(samples.path or (), samples.batch)}{others}. ProbeImages(image_key=…) explains other images, "
        "ProbeImages(forward=…) runs it otherwise"
    )


def _first_samples(trial: Trial, samples: Samples | None) -> Any:
    return None if samples is None else samples.rows(trial.rows)


def _of_labels(samples: Samples, target_key: Any) -> str:
    """What was not handed over, as it may be labels."""
    if target_key is not None or not isinstance(samples.batch, tuple | list):
        return ""
    entries = entries_of(samples.batch) or ()
    places = [key for key, value in entries if isinstance(key, int) and looks_like_labels(value, samples.size)]
    named = " and ".join(path_in_words((place,), samples.batch) for place in places)
    return (
        f", of which {named} may be labels, which are never handed over (target_key says which are)" if places else ""
    )


def _nothing_fits(trial: Trial, probe: ProbeSet, failed: list[Tried]) -> str:
    """What there is, what was tried, and what to write."""
    samples, kind = probe.samples, type(trial.model).__name__
    tried = "; ".join(
        f"{one.way.words}: {one.error or 'it gives nothing that is one an image'}" for one in failed[:_NAMED]
    )
    where, holds, other = "which were given without a batch", "", "…"
    if samples is not None:
        where = "which a batch_adapter makes" if samples.path is None else path_in_words(samples.path, samples.batch)
        holds = f"; the batch of {len(trial.images)} samples is {describe(_first_samples(trial, samples), depth=3)}"
        others = [(key,) for key, _ in entries_of(samples.batch) or () if samples.path and key != samples.path[0]]
        other = path_in_words(others[0], samples.batch) if others else other
        holds += _of_labels(samples, probe.settings.target_key)
    parts = attention_parts(trial.model, trial.attends)[:_NAMED]
    prefix = f"{probe.settings.model}." if probe.settings.model else ""
    contain = ", ".join(f"'{prefix}{one.path}' ({one.kind})" for one in parts)
    line = f"ProbeImages(forward=run) with def run(model, images, batch): return model(images, {other})"
    if running := [one for one in parts if one.runs]:
        line = f"ProbeImages(model='{prefix}{running[0].path}'), which takes the images alone, or {line}"
    return (
        f"model: no way was found to run {kind} on the probe's images, {where}. Its signature is "
        f"{kind}.forward{signature_in_words(trial.model)}{holds}. Tried: {tried}."
        + (f" Parts that contain attention: {contain}." if contain else "")
        + f" Write {line}. Other images of a batch are chosen by image_key, such as image_key=[0, 0] for batch[0][0]"
    )
