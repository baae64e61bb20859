"""Other libraries' targeted attacks, each set up for the smallest change that it can find. All are optional.

What a peer is given: the pixels in [0, 1], the normalisation inside its model, its own default step sizes, and nothing
that makes it fight with its hands tied: adv-lib's DDN rounds to 8 bits by default and does not here. TR and σ-zero
leave a class and reach none; on two logits, the target's and the largest other, the two are the same.

foolbox 3.3.4's L2 FMN is left out: its projection divides norms by themselves (``norms / norms``), so that its ball is
never enforced.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.rewriting_trial import Attack, PixelModel

#: Radii of the issue's table, in 1/255.
RADII = (1, 2, 4, 8, 16)
#: Radii at which APGD looks for a distance, with a fifth of its gradients at each.
APGD_RADII = {"linf": (2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255), "l2": (0.25, 0.5, 1.0, 2.0, 4.0)}
#: First lengths of the trust-region attack's steps: the longest that its adaptive rule permits.
TRUST = {"linf": 0.01, "l2": 0.05}
#: Radii at which PGD looks for a distance: 100 gradients in 20 steps each.
DISTANCE_RADII = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Peer:
    """An attack of another library.

    Attributes:
        package: its name on PyPI.
        norms: those that it can be asked for.
        build: (norm, steps) → the attack; imports the package.
        minimal: whether it looks for the smallest change, and not within a fixed radius.
    """

    package: str
    norms: tuple[str, ...]
    build: Callable[[str, int], Attack]
    minimal: bool = True


def foolbox_fmn(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """L∞ FMN (Pintor et al., 2102.12827)."""
    from foolbox.attacks import LInfFMNAttack

    return _foolbox(LInfFMNAttack(steps=steps))


def foolbox_ddn(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """DDN (Rony et al., 1811.09600)."""
    from foolbox.attacks import DDNAttack

    return _foolbox(DDNAttack(steps=steps))


def _foolbox(attack: object) -> Attack:
    from foolbox import PyTorchModel, TargetedMisclassification

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        bounded = PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        return attack.run(bounded, pixels, TargetedMisclassification(target))  # type: ignore[attr-defined]

    return run


def adv_lib_fmn(norm: str, steps: int) -> Attack:
    """FMN."""
    fmn = _adv_lib().fmn
    return lambda model, pixels, target: fmn(model, pixels, target, norm=_ORDERS[norm], targeted=True, steps=steps)


def adv_lib_ddn(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """DDN, not rounded to 8 bits."""
    ddn = _adv_lib().ddn
    return lambda model, pixels, target: ddn(model, pixels, target, targeted=True, steps=steps, levels=None)


def adv_lib_pdpgd(norm: str, steps: int) -> Attack:
    """PDPGD (Matyasko & Chau, 2106.01538); for pixels with the proximal operator of L2/3, as its authors advise."""
    pdpgd, proximal = _adv_lib().pdpgd, 23 if norm == "l0" else None

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        options = {"norm": _ORDERS[norm], "proximal_operator": proximal, "num_steps": steps}
        return pdpgd(model, pixels, target, targeted=True, **options)  # type: ignore[no-any-return]

    return run


def adv_lib_tr(norm: str, steps: int) -> Attack:
    """The trust-region attack (Yao et al., 1812.06371), adaptive."""
    options = {"iter": steps, "p": _ORDERS[norm], "adaptive": True, "eps": TRUST[norm]}
    return _by_target(partial(_adv_lib().tr, **options))


def adv_lib_sigma_zero(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """σ-zero (Cinà et al., 2402.01879), which counts values and not pixels."""
    return _by_target(partial(_adv_lib().sigma_zero, num_steps=steps))


def adv_lib_vfga(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """VFGA (Hajri et al., 2011.12423), which counts values and not pixels; each step costs 20 forward passes more."""
    vfga = _adv_lib().vfga
    return lambda model, pixels, target: vfga(model, pixels, target, targeted=True, max_iter=steps)


def sigma_zero_of_pixels(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """σ-zero with a pixel, all its channels together, as its unit: the slow reference, image by image."""
    from tests.references.sparse_attacks import sigma_zero

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        classes = target.tolist()
        return torch.stack([sigma_zero(model, *row, steps).pixels for row in zip(pixels, classes, strict=True)])

    return run


def adv_lib_apgd(norm: str, steps: int) -> Attack:
    """APGD (Croce & Hein, 2003.01690) at five radii, of each image the smallest at which it succeeds."""
    apgd = _adv_lib().apgd

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        best = pixels.clone()
        for radius in reversed(APGD_RADII[norm]):
            options = {"eps": radius, "norm": _ORDERS[norm], "n_iter": max(steps // len(APGD_RADII[norm]), 1)}
            found = apgd(model, pixels, target, targeted=True, **options)
            with torch.no_grad():
                success = model(found).argmax(1) == target
            best = torch.where(success[:, None, None, None], found, best)
        return best

    return run


_ORDERS = {"linf": float("inf"), "l2": 2, "l0": 0}


class _Rivals(torch.nn.Module):
    """Two logits (B, 2): the largest of the others, and the target's. To leave the first is to reach the target."""

    def __init__(self, model: PixelModel, target: int) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.model(pixels)
        others = torch.cat([logits[:, : self.target], logits[:, self.target + 1 :]], dim=1).amax(1)
        return torch.stack([others, logits[:, self.target]], dim=1)


def _by_target(untargeted: Callable[..., Tensor]) -> Attack:
    """A targeted attack from one that leaves a class: images of one target after those of another, see `_Rivals`."""

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        found = pixels.clone()
        for one in target.unique().tolist():
            rows = target == one
            found[rows] = untargeted(_Rivals(model, one), pixels[rows], torch.zeros_like(target[rows]))
        return found

    return run


def _adv_lib() -> types.ModuleType:
    """The attacks of adv-lib, which imports a plotting server, visdom, that no longer builds beside new setuptools."""
    stands_in = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if stands_in:
        sys.modules["visdom"] = types.ModuleType("visdom")
    try:
        from adv_lib import attacks
    finally:
        if stands_in:
            del sys.modules["visdom"]
    return attacks


def torchattacks_pgd(radius: float, steps: int) -> Attack:
    """Targeted PGD from a random start in an L∞ ball, with Madry et al.'s step of 2.5 radii over the steps.

    Args:
        radius: in pixels of [0, 1].
        steps: gradients.
    """
    from torchattacks import PGD

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        attack = PGD(model, eps=radius, alpha=2.5 * radius / steps, steps=steps, random_start=True)
        attack.set_mode_targeted_by_label(quiet=True)
        return attack(pixels, target)  # type: ignore[no-any-return]

    return run


def _torchattacks_pgd_at_8(norm: str, steps: int) -> Attack:  # noqa: ARG001
    return torchattacks_pgd(8 / 255, steps)


#: Name in the tables → peer.
PEERS = {
    "foolbox LInfFMN": Peer("foolbox", ("linf",), foolbox_fmn),
    "foolbox DDN": Peer("foolbox", ("l2",), foolbox_ddn),
    "adv-lib FMN": Peer("adv-lib", ("linf", "l2", "l0"), adv_lib_fmn),
    "adv-lib DDN": Peer("adv-lib", ("l2",), adv_lib_ddn),
    "adv-lib PDPGD": Peer("adv-lib", ("linf", "l2", "l0"), adv_lib_pdpgd),
    "adv-lib TR": Peer("adv-lib", ("linf", "l2"), adv_lib_tr),
    "adv-lib APGD at 5 radii": Peer("adv-lib", ("linf", "l2"), adv_lib_apgd),
    "adv-lib σ-zero": Peer("adv-lib", ("l0",), adv_lib_sigma_zero),
    "σ-zero by pixels": Peer("torch", ("l0",), sigma_zero_of_pixels),
    "adv-lib VFGA": Peer("adv-lib", ("l0",), adv_lib_vfga),
    "torchattacks PGD": Peer("torchattacks", ("linf",), _torchattacks_pgd_at_8, minimal=False),
}


@cache
def missing(package: str) -> str | None:
    """Why a package cannot be used; None if it can."""
    try:
        version(package)
        if package == "adv-lib":
            _adv_lib()
        else:
            importlib.import_module(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None


def version(package: str) -> str:
    """Of an installed package."""
    return importlib.metadata.version(package)


def versions() -> str:
    """Versions of the peers that are installed."""
    packages = dict.fromkeys(peer.package for peer in PEERS.values() if peer.package != "torch")
    return ", ".join(f"{name} {version(name)}" for name in packages if missing(name) is None)
