"""The models that the attacks are tried on, trained here and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import rewriting_photos
from benchmarks.rewriting_trial import Trial, select
from benchmarks.stamps import MEAN, STD

DEFAULT_CACHE = Path("~/.cache/lightning-attngrad/benchmarks").expanduser()


def digits(cache: Path, count: int = 64) -> Trial:
    """The demo's model and images: a ViT of 196 tokens, fine-tuned for eight epochs from the shipped backbone.

    Args:
        cache: folder that keeps the weights.
        count: images of the trial.
    """
    from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, load_digits

    network = digits_network(cache)
    _, validation = load_digits()
    about = "ViT of the demo, 0.17 M parameters, 196 tokens; MNIST digits of 28×28 pixels"
    return select("digits", network, ((DIGIT_MEAN,), (DIGIT_STD,)), validation, count, about)


def digits_network(cache: Path, seed: int = 0) -> nn.Module:
    """The demo's model, fine-tuned with this seed; its weights are kept in the folder."""
    from lightning_attngrad.demo.models import demo_vision_transformer

    return kept(of_seed(cache / "digits.pt", seed), demo_vision_transformer(), partial(_fine_tune_digits, seed=seed))


def photographs(cache: Path, count: int = 32, stamps: Path = rewriting_photos.STAMPS) -> Trial:
    """A pretrained ViT-S, fine-tuned on cut-outs pasted on photographs; validated on cut-outs that it has not seen.

    Args:
        cache: folder that keeps the weights.
        count: images of the trial.
        stamps: folder of Tux Paint's stamps.

    Raises:
        FileNotFoundError: something has to be installed first; the message says what.
    """
    if (reason := rewriting_photos.missing(stamps)) is not None:
        raise FileNotFoundError(reason)
    network = kept(cache / "photographs.pt", rewriting_photos.network(), partial(rewriting_photos.train, stamps=stamps))
    about = "ViT-S/14, 22 M parameters, 37 tokens; cut-outs on photographs, 84×84 pixels in colour"
    normalisation = (rewriting_photos.MEAN, rewriting_photos.STD)
    return select("photographs", network, normalisation, rewriting_photos.validation(stamps), count, about)


def swin(cache: Path, count: int = 16, stamps: Path = rewriting_photos.STAMPS) -> Trial:
    """The Swin of the faithfulness benchmark, on which no setting of the search was chosen.

    Args:
        cache: folder that keeps the weights.
        count: images of the trial.
        stamps: folder of Tux Paint's stamps.

    Raises:
        FileNotFoundError: something has to be installed first; the message says what.
    """
    from benchmarks import faithfulness_models  # it fills its models by this module

    if (reason := rewriting_photos.missing(stamps)) is not None:
        raise FileNotFoundError(reason)
    subject = faithfulness_models.photographs_swin(cache, "report", stamps)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pixels = (subject.images * std + mean).clamp(0, 1)
    about = "Swin, 11 M parameters, 784 patches at first; cut-outs on photographs, 112×112 pixels in colour"
    return select("swin", subject.network, (MEAN, STD), (pixels, subject.label), count, about)


def of_seed(file: Path, seed: int) -> Path:
    """The file of what was trained with another seed than 0."""
    return file.with_stem(f"{file.stem}-seed{seed}") if seed else file


def kept(file: Path, network: nn.Module, train: Callable[[nn.Module], None]) -> nn.Module:
    """Fill a network from a file, or train it and write the file."""
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        print(f"training {file.stem}: once, the weights are kept in {file}", flush=True)
        train(network)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return network.eval()


def _fine_tune_digits(network: nn.Module, seed: int) -> None:
    import lightning as L

    from lightning_attngrad.demo.data import DigitsDataModule
    from lightning_attngrad.demo.models import load_backbone
    from lightning_attngrad.demo.module import FineTuner

    L.seed_everything(seed, verbose=False)
    load_backbone(network)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(FineTuner(network, 10, learning_rate=1e-3), datamodule=DigitsDataModule())
