"""A live run seen safely: the images of a run, isolation, processes, cadence, time budget."""

from __future__ import annotations

from lightning_attngrad.probe.class_names import check_class_names, find_class_names
from lightning_attngrad.probe.clock import Account, Clock
from lightning_attngrad.probe.display import Display, shown_pixels
from lightning_attngrad.probe.evaluation import Evaluation, Findings
from lightning_attngrad.probe.forward import ProbeForward, UnknownSamplesError
from lightning_attngrad.probe.governor import Governor
from lightning_attngrad.probe.isolation import isolated
from lightning_attngrad.probe.jitter import jittered_copies
from lightning_attngrad.probe.masks import MaskSource, find_masks, load_mask_source, read_masks
from lightning_attngrad.probe.normalisation import KnownPixels, Normalisation, check_normalisation, find_pixels
from lightning_attngrad.probe.probe_set import ProbeSet
from lightning_attngrad.probe.resolve import (
    ModelPathError,
    ProbeInputError,
    load_batch_adapter,
    resolve_model,
    split_batch,
)
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.shared import SharedProbe
from lightning_attngrad.probe.sharing import PartSharing, PartTooLargeError, Processes
from lightning_attngrad.probe.timetable import Cadence, Timetable

__all__ = [
    "Account",
    "Cadence",
    "Clock",
    "Display",
    "Evaluation",
    "Findings",
    "Governor",
    "KnownPixels",
    "MaskSource",
    "ModelPathError",
    "Normalisation",
    "PartSharing",
    "PartTooLargeError",
    "ProbeForward",
    "ProbeImages",
    "ProbeInputError",
    "ProbeSet",
    "Processes",
    "SharedProbe",
    "Timetable",
    "UnknownSamplesError",
    "check_class_names",
    "check_normalisation",
    "find_class_names",
    "find_masks",
    "find_pixels",
    "isolated",
    "jittered_copies",
    "load_batch_adapter",
    "load_mask_source",
    "read_masks",
    "resolve_model",
    "shown_pixels",
    "split_batch",
]
