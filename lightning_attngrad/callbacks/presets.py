"""Lists of monitors that are asked for by one word, or by a file."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_attngrad.callbacks.attention_drift_monitor import AttentionDriftMonitor
from lightning_attngrad.callbacks.attention_map_monitor import AttentionMapMonitor
from lightning_attngrad.callbacks.base import ProbeCallback
from lightning_attngrad.callbacks.checkpoint_audit import CheckpointAudit
from lightning_attngrad.callbacks.faithfulness_monitor import FaithfulnessMonitor
from lightning_attngrad.callbacks.rewrite_robustness_monitor import RewriteRobustnessMonitor
from lightning_attngrad.probe import ProbeImages

#: Of each of the two monitors of `light`, in a run of which nobody has thought what it may cost.
_LIGHT_IMAGES, _LIGHT_OVERHEAD = 8, 0.02
#: Of the two dearest monitors of `full`, an evaluation in so many epochs: all together then take a twentieth of the
#: time of fine-tuning a small ViT on 5,000 images for ten epochs (`python -m benchmarks.overhead`).
_FULL_REWRITING, _FULL_FAITHFULNESS = 2, 4


def monitors(preset: str | PathLike[str] = "light", *, probe: ProbeImages | None = None) -> list[ProbeCallback]:
    """The callbacks of a preset, fresh ones for each Trainer.

    The environment variable ``LIGHTNING_ATTNGRAD`` takes the same words.

    Args:
        preset: ``light`` (maps and drift of 8 images, each within 2 % of the fit's time), ``full`` (all monitors and
            the checkpoint audit; the two dearest, rewriting and faithfulness, in every second and fourth epoch and in
            the last, all else as it is without arguments), or the path of a YAML file: a list of callbacks of this
            package, or of your own made of its `Monitor`, each with ``class_path`` and ``init_args`` as for
            LightningCLI.
        probe: the images and how they are read, for all of them; None is the preset's own. A file says it itself.

    Returns:
        The callbacks, for ``Trainer(callbacks=…)``.

    Raises:
        ValueError: for another word, a file that is not there or holds no list, or ``probe`` beside a file.
        Exception: whatever YAML, jsonargparse and the callbacks say about what is in a file.

    Example:
        >>> [type(monitor).__name__ for monitor in monitors("light", probe=ProbeImages(num_images=4))]
        ['AttentionMapMonitor', 'AttentionDriftMonitor']
        >>> [type(monitor).__name__ for monitor in monitors("full")][2:]
        ['RewriteRobustnessMonitor', 'FaithfulnessMonitor', 'CheckpointAudit']
        >>> # trainer = L.Trainer(callbacks=[*attngrad.monitors("full"), ModelCheckpoint(monitor="val_loss")])
    """
    if probe is not None and not isinstance(probe, ProbeImages):
        raise ValueError(f"probe: got {type(probe).__name__}; expected attngrad.ProbeImages(…), or None")
    if isinstance(preset, str) and preset in PRESETS:
        return PRESETS[preset](probe)
    listed = _listed_in(preset)
    if probe is not None:
        raise ValueError(
            f"probe: got one beside the file {preset}, which says it itself, under probe: of each callback"
        )
    return listed


def _light(probe: ProbeImages | None) -> list[ProbeCallback]:
    images = ProbeImages(num_images=_LIGHT_IMAGES) if probe is None else probe
    return [kind(probe=images, max_overhead=_LIGHT_OVERHEAD) for kind in (AttentionMapMonitor, AttentionDriftMonitor)]


def _full(probe: ProbeImages | None) -> list[ProbeCallback]:
    return [
        AttentionMapMonitor(probe=probe),
        AttentionDriftMonitor(probe=probe),
        RewriteRobustnessMonitor(probe=probe, every_n_epochs=_FULL_REWRITING),
        FaithfulnessMonitor(probe=probe, every_n_epochs=_FULL_FAITHFULNESS),
        CheckpointAudit(probe=probe),
    ]


#: What may be said instead of a path.
PRESETS: dict[str, Callable[[ProbeImages | None], list[ProbeCallback]]] = {"light": _light, "full": _full}


def _listed_in(preset: str | PathLike[str]) -> list[ProbeCallback]:
    """The callbacks of a YAML file.

    Raises:
        ValueError: if there is no such file, or no list in it.
        Exception: whatever YAML, jsonargparse and the callbacks say about what is in it.
    """
    path = Path(preset).expanduser()
    if not path.is_file():
        words = ", ".join(repr(word) for word in PRESETS)
        raise ValueError(
            f"got {str(preset)!r}; expected {words}, or the path of a YAML file that lists callbacks; there is no file "
            f"{path.absolute()}"
        )
    listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f"{path} holds {'nothing' if listed is None else type(listed).__name__}; expected a list of callbacks, "
            "such as\n- class_path: lightning_attngrad.AttentionMapMonitor\n  init_args: {num_images: 8}"
        )
    from jsonargparse import ArgumentParser  # noqa: PLC0415  (of files only: an image of PyTorch has none)

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[ProbeCallback])
    made = parser.instantiate_classes(parser.parse_object({"callbacks": listed}))
    return list(made.callbacks)
