"""Other libraries' targeted attacks, each set up for the smallest change that it can find. All are optional.

What a peer is given: the pixels in [0, 1], the normalisation inside its model, its own default step sizes, and nothing
that makes it fight with its hands tied: adv-lib's DDN rounds to 8 bits by default and does not here.

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
from functools import cache

from torch import Tensor

from benchmarks.rewriting_trial import Attack, PixelModel

#: Radii of the issue's table, in 1/255.
RADII = (1, 2, 4, 8, 16)
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
    order = float("inf") if norm == "linf" else 2
    return lambda model, pixels, target: fmn(model, pixels, target, norm=order, targeted=True, steps=steps)


def adv_lib_ddn(norm: str, steps: int) -> Attack:  # noqa: ARG001
    """DDN, not rounded to 8 bits."""
    ddn = _adv_lib().ddn
    return lambda model, pixels, target: ddn(model, pixels, target, targeted=True, steps=steps, levels=None)


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
    "adv-lib FMN": Peer("adv-lib", ("linf", "l2"), adv_lib_fmn),
    "adv-lib DDN": Peer("adv-lib", ("l2",), adv_lib_ddn),
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
    packages = dict.fromkeys(peer.package for peer in PEERS.values())
    return ", ".join(f"{name} {version(name)}" for name in packages if missing(name) is None)
