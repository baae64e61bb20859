"""Runs as they are kept in a log directory, of whatever size, made without training: drawn at random, from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_attngrad.reporting.report.store import RunStore

EVIL = "<script>alert(1)</script>"
LAYERS = ("blocks.0.attn", "blocks.1.attn")


def described(**others: Any) -> dict[str, Any]:
    """What a run says of itself and of its monitors."""
    monitors = [
        monitor("maps", "AttentionMapMonitor", {"how spread out, and where": ["entropy", "corner_mass"]}, ["entropy"]),
        monitor(
            "drift",
            "AttentionDriftMonitor",
            {"spearman, and its noise floor": ["spearman", "floor/spearman"], "drift by class": ["per_class/"]},
            ["spearman", "floor/spearman"],
        ),
        monitor(
            "rewrite",
            "RewriteRobustnessMonitor",
            {"smallest change found: median and quartiles": {"band": ["median_linf", "q25_linf", "q75_linf"]}},
            ["median_linf"],
        ),
        monitor("audit", "CheckpointAudit", {}, []),
    ]
    run = {"module": "Classifier", "precision": "32-true", "processes": 1, "began": "2026-11-26 05:00"}
    return {**run, "versions": {"torch": "2.14.1"}, "fit_seconds": 100.0, "monitors": monitors, "records": [], **others}


def monitor(name: str, kind: str, charts: dict[str, Any], main: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "lineage": [kind],
        "settings": {"steps": 16},
        "conditions": {"images": "abc", "precision": "32-true"},
        "probe": {"num_images": 16},
        "charts": charts,
        "meanings": dict.fromkeys(main, "what it says"),
        "seconds": 2.0,
        "remarks": [],
    }


def keep_run(
    directory: Path,
    *,
    images: int = 3,
    epochs: int = 3,
    side: int = 32,
    grid: int = 4,
    layers: int = 2,
    pairs: int = 2,
    key: str = "abc123",
    seed: int = 0,
    steps_an_epoch: int = 10,
    class_name: str = EVIL,
    **others: Any,
) -> Path:
    """A run with maps, drift and rewriting at the start and after each epoch, and an audited checkpoint."""
    draw = np.random.default_rng(seed)
    store = RunStore(str(directory), step=0)
    pixels = draw.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    names = [class_name if index % 2 else "cat" for index in range(images)]
    store.keep_images(key, pixels, None, {"hash": key, "true": names, "class_names": names, "shown_as": ""})
    for epoch in range(epochs + 1):
        step = epoch * steps_an_epoch
        label = f"epoch {epoch}" if epoch else "start"
        moment = {"label": label, "step": step, "global_step": step, "images": key}
        store.keep("maps", moment, _maps(draw, images, grid, layers, names, epoch))
        store.keep(
            "drift", moment, {"numbers": {"spearman": 0.1 * epoch, "floor/spearman": 0.05, "per_class/cat": 0.2}}
        )
        store.keep("rewrite", moment, _rewrites(draw, pixels[:pairs], grid, names, epoch))
        if epoch:
            store.keep_metrics(moment, {"val_accuracy": 1 - 0.5**epoch, "val_loss": 0.5**epoch, "train_time": 3.0})
    store.write(described(**others))
    record = {
        "checkpoint": "best.ckpt",
        "epoch": epochs - 1,
        "global_step": epochs * steps_an_epoch,
        "figures": {"rewrite/median_linf": 2 / 255, "rewrite/area": "inf", "maps/entropy": 0.7},
        "metrics": {"val_accuracy": 0.9},
        "hash": "0123456789abcdef",
        "settings": {},
    }
    (directory / "checkpoints").mkdir(exist_ok=True)
    (directory / "checkpoints" / "best.audit.json").write_text(json.dumps(record))
    return directory


def _maps(
    draw: np.random.Generator, images: int, grid: int, layers: int, names: list[str], epoch: int
) -> dict[str, Any]:
    classes = min(images, 2)
    return {
        "numbers": {"entropy": 0.9 - 0.1 * epoch, "corner_mass": 0.1},
        "heatmap": draw.uniform(0, 3, (images, grid, grid)).astype(np.float32),
        "layers": draw.uniform(0, 3, (images, layers, grid, grid)).astype(np.float16),
        "layer_names": [f"blocks.{number}.attn" for number in range(layers)],
        "class_maps": draw.uniform(0, 3, (classes, 2, grid, grid)).astype(np.float16),
        "class_map_names": [[names[0], names[-1]]] * classes,
        "captions": [
            {
                "predicted": name,
                "probability": 0.9,
                "true": name,
                "true_probability": 0.9,
                "mapped": "",
                "what": "predicted",
            }
            for name in names
        ],
        "method": "guided relevance",
        "signed": False,
        "area": [],
    }


def _rewrites(draw: np.random.Generator, pixels: np.ndarray, grid: int, names: list[str], epoch: int) -> dict[str, Any]:
    count = len(pixels)
    median = (4 - epoch / 10) / 255
    return {
        "numbers": {"median_linf": median if epoch else float("inf"), "q25_linf": median / 2, "q75_linf": median * 2},
        "original": pixels,
        "difference": draw.uniform(-median, median, pixels.shape).astype(np.float16),
        "stretch": np.ones(count, np.float32),
        "shown_image": np.arange(count),
        "shown_maps": draw.uniform(0, 3, (count, 2, grid, grid)).astype(np.float32),
        "signed": False,
        "captions": [
            {
                "before": names[number],
                "before_probability": 0.9,
                "after": EVIL,
                "after_probability": 0.6,
                "target": EVIL,
                "success": True,
                "distance": "L∞ 2/255",
                "psnr": 40.0,
                "note": "",
            }
            for number in range(count)
        ],
    }
