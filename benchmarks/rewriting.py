"""How little rewrites a class, beside other libraries' attacks, and what that costs: Markdown tables.

Same model, images, targets and seeds for all. What an attack says of its success is not read: a forward pass outside of
it decides, and distances are recomputed from the images.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

from benchmarks import rewriting_models, rewriting_photos
from benchmarks.rewriting_conduct import conduct
from benchmarks.rewriting_curve import curve_table
from benchmarks.rewriting_peers import DISTANCE_RADII, PEERS, RADII, missing, torchattacks_pgd, version, versions
from benchmarks.rewriting_scores import best_of, optimality, quantile
from benchmarks.rewriting_trial import Attack, Outcome, PixelModel, Trial, closest, evaluate, measure
from benchmarks.timing import interleaved, ratio

NORMS = {"linf": "L∞, in 1/255", "l2": "L2, pixels in [0, 1]", "l0": "pixels changed"}
BUDGET = 16
#: Of the fewest pixels, against σ-zero with the budget of the peers.
L0_BUDGET, L0_PEER = 25, "σ-zero"
BUDGETS = (10, BUDGET, 25, 50, 100)
#: What the peers may spend where they are compared with the budget above.
PEER_BUDGET = 100
PGD_STEPS = 20
#: Gradients to each class, beside AutoAttack.
LONG = 64
COST_IMAGES, COST_FORWARDS = 32, 7
# A pixel that moved by exactly the radius may be off by a rounding.
RADIUS_TOLERANCE = 1e-6

Rows = dict[tuple[str, int], Outcome]
"""(attack, gradients that were asked for) → what it did."""


def ours(norm: str, steps: int) -> Attack:
    """This library's attack."""
    from lightning_attngrad.rewrite import rewrite

    def run(model: PixelModel, pixels: Tensor, target: Tensor) -> Tensor:
        mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
        images = model.normalise(pixels)
        return rewrite(model.network, images, target, norm=norm, steps=steps, mean=mean, std=std).pixels

    return run


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}, "
        f"{versions() or 'no peer installed'}; float32 on {options.threads} thread(s)"
    )
    count = {} if options.images is None else {"count": options.images}
    trials: dict[str, Callable[[], Trial]] = {
        "digits": partial(rewriting_models.digits, options.cache, **count),
        "photographs": partial(rewriting_models.photographs, options.cache, stamps=options.stamps, **count),
        "swin": partial(rewriting_models.swin, options.cache, stamps=options.stamps, **count),
    }
    for name in options.models:
        try:
            trial = trials[name]()
        except FileNotFoundError as error:
            print(f"\n## {name}\n\nleft out: {error}")
            continue
        print(f"\n## {name}\n\n{trial.about}; {trial.accuracy:.1%} correct; {len(trial.pixels)} images", flush=True)
        tables = {
            "distance": _distance_tables,
            "cost": _cost_table,
            "conduct": _conduct_table,
            "curve": _curve_table,
        }
        for table in options.tables:
            for line in tables[table](trial, options):
                print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewriting", description=__doc__)
    known = ("digits", "photographs", "swin")
    tables = ("distance", "cost", "conduct", "curve")
    parser.add_argument("--models", nargs="+", choices=known, default=known)
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--norms", nargs="+", choices=tuple(NORMS), default=tuple(NORMS))
    parser.add_argument("--images", type=int, help="of each model (default 64, 32, 16)")
    parser.add_argument("--steps", nargs="+", type=int, default=BUDGETS, help="budgets of ours")
    parser.add_argument("--peer-steps", nargs="+", type=int, default=BUDGETS, help="budgets of the peers")
    parser.add_argument("--pgd-steps", nargs="+", type=int, default=[PGD_STEPS, PEER_BUDGET], help="of PGD at a radius")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), default=tuple(PEERS), help="to try")
    parser.add_argument("--peers-only", action="store_true", help="leave this library out")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing that count (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument(
        "--cache", type=Path, default=rewriting_models.DEFAULT_CACHE, help="keeps weights and what the peers found"
    )
    parser.add_argument("--stamps", type=Path, default=rewriting_photos.STAMPS, help="folder of Tux Paint's stamps")
    options = parser.parse_args()
    if (
        min(
            *options.steps,
            *options.peer_steps,
            *options.pgd_steps,
            options.rounds,
            options.threads,
            options.images or 1,
        )
        < 1
    ):
        parser.error("--steps, --peer-steps, --pgd-steps, --rounds, --threads, --images: expected numbers above 0")
    if options.peers_only:
        options.steps = []
    return options


def _distance_tables(trial: Trial, options: argparse.Namespace) -> Iterator[str]:
    for norm in options.norms:
        unit = NORMS[norm]
        peers = _peer_rows(trial, norm, options)
        own: Rows = {("ours", steps): evaluate(ours(norm, steps), trial) for steps in options.steps}
        yield f"\n### {trial.name}: {unit}\n"
        yield from _distance_table(norm, {**own, **peers})
        for name, peer in PEERS.items():
            if norm in peer.norms and name in options.peers and (reason := missing(peer.package)):
                yield f"| {name} | {reason} | | | | | | | |"
        if peers and own:
            yield from _asked_of_distance(norm, own, peers)
        if norm == "linf":
            yield from _success_table(trial, own, options)


def _peer_rows(trial: Trial, norm: str, options: argparse.Namespace) -> Rows:
    rows: Rows = {}
    for name, peer in PEERS.items():
        if norm not in peer.norms or name not in options.peers or missing(peer.package):
            continue
        if not peer.minimal:  # of each image the smallest radius at which it succeeded
            found = closest(_pgd(trial, PGD_STEPS, DISTANCE_RADII, options.cache))
            rows[f"{name} at {len(DISTANCE_RADII)} radii", PGD_STEPS] = found
            continue
        for steps in options.peer_steps:
            asked = f"{name}, {norm}, {steps}"
            rows[name, steps] = _kept(trial, asked, peer.package, partial(peer.build, norm, steps), options.cache)
    return rows


def _pgd(trial: Trial, steps: int, radii: tuple[int, ...], cache: Path) -> list[Outcome]:
    """PGD at each radius, in 1/255."""
    return [
        _kept(trial, f"pgd {radius}, {steps}", "torchattacks", partial(torchattacks_pgd, radius / 255, steps), cache)
        for radius in radii
    ]


def _kept(trial: Trial, asked: str, package: str, build: Callable[[], Attack], cache: Path) -> Outcome:
    """A peer's outcome, from disk if it has been tried on this very trial before."""
    name = f"{trial.name}-{trial.digest}-{package}-{version(package)}-{asked}".replace(", ", "-").replace(" ", "_")
    file = cache / "peers" / f"{name}.pt"
    spent = ("gradients", "forwards", "seconds")
    if file.is_file():
        saved = torch.load(file, weights_only=True)
        return measure(trial, saved["pixels"], *(saved[one] for one in spent))
    outcome = evaluate(build(), trial)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: getattr(outcome, name) for name in ("pixels", *spent)}, file)
    return outcome


def _distance_table(norm: str, rows: Rows) -> Iterator[str]:
    yield "| | steps | gradients | forwards | median | quartiles | median of image / its best | optimality | failed |"
    yield "|---|---|---|---|---|---|---|---|---|"
    if not rows:
        return
    distances = {row: outcome.distance(norm) for row, outcome in rows.items()}
    best = best_of(list(distances.values()))
    unit = 255 if norm == "linf" else 1
    for (name, steps), outcome in rows.items():
        distance = distances[name, steps]
        low, median, high = (unit * quantile(distance, share) for share in (0.25, 0.5, 0.75))
        yield (
            f"| {name} | {steps} | {outcome.gradients:.0f} | {outcome.forwards:.0f} | {median:.3f} | {low:.3f} … "
            f"{high:.3f} | {quantile(distance / best):.3f} | {optimality(distance, best):.3f} | "
            f"{int(distance.isinf().sum())} |"
        )


def _asked_of_distance(norm: str, own: Rows, peers: Rows) -> Iterator[str]:
    """What few gradients reach against everything that the peers reach with no more than 100."""
    within = {f"{name}, {steps} steps": (name, steps) for name, steps in peers if steps <= PEER_BUDGET}
    distances = {words: peers[row].distance(norm) for words, row in within.items()}
    best = best_of(list(distances.values()))  # (N,) of each image the best of all peers
    yield "\n| asked | limit | measured | |\n|---|---|---|---|"
    if norm == "l0":
        for words, distance in distances.items():
            if L0_PEER in words and words.endswith(f" {PEER_BUDGET} steps") and ("ours", L0_BUDGET) in own:
                mine = own["ours", L0_BUDGET].distance(norm)
                medians = quantile(mine) / quantile(distance)
                yield _asked(f"ours at {L0_BUDGET} gradients / {words}, medians", 1.0, medians)
                yield _asked(f"median over images of ours / {words}", 1.0, quantile(mine / distance))
    elif ("ours", BUDGET) in own:
        mine = own["ours", BUDGET].distance(norm)
        first = min(distances, key=lambda name: quantile(distances[name]))
        medians = quantile(mine) / quantile(distances[first])
        yield _asked(f"ours at {BUDGET} gradients / the best peer ({first}), medians", 1.02, medians)
        yield _asked("median over images of ours / the image's best of all peers", 1.02, quantile(mine / best))
        closer = (distances[first] < mine).float().mean().item()
        yield f"| images on which {first} comes closer | – | {closer:.0%} | |"
    of_all = best_of([outcome.distance(norm) for outcome in (*own.values(), *peers.values())])
    reached = {row: optimality(outcome.distance(norm), of_all) for row, outcome in {**own, **peers}.items()}
    for steps, limit in ((BUDGET, 0.95), (PEER_BUDGET, 0.99)):
        if ("ours", steps) in own:
            yield _asked(f"optimality of ours at {steps}", limit, reached["ours", steps], at_least=True)
    for _, steps in own:
        rivals = {name: reached[name, spent] for name, spent in peers if spent == steps}
        if rivals:
            ahead = max(rivals, key=lambda name: rivals[name])
            lead = reached["ours", steps] - rivals[ahead]
            yield _asked(
                f"optimality of ours at {steps} less that of the first peer ({ahead})", 0.0, lead, at_least=True
            )


def _success_table(trial: Trial, own: Rows, options: argparse.Namespace) -> Iterator[str]:
    """Success within each radius: one run of ours, and PGD run anew at each radius."""
    shares = {f"ours, {steps} steps, one run": _within(outcome) for (_, steps), outcome in own.items()}
    if "torchattacks PGD" in options.peers and missing("torchattacks") is None:
        for steps in options.pgd_steps:
            shares[f"torchattacks PGD-{steps}, {len(RADII)} runs"] = [
                _within(outcome)[number] for number, outcome in enumerate(_pgd(trial, steps, RADII, options.cache))
            ]
    yield f"\n| success within | {' | '.join(f'{radius}/255' for radius in RADII)} |\n|---|{'---|' * len(RADII)}"
    for name, values in shares.items():
        yield f"| {name} | {' | '.join(f'{value:.1%}' for value in values)} |"
    mine, pgd = f"ours, {BUDGET} steps, one run", f"torchattacks PGD-{PGD_STEPS}, {len(RADII)} runs"
    if mine in shares and pgd in shares:
        least = min(one - other for one, other in zip(shares[mine], shares[pgd], strict=True))
        yield "\n| asked | limit | measured | |\n|---|---|---|---|"
        yield _asked(f"success of ours less PGD-{PGD_STEPS}'s, the smallest over the radii", 0.0, least, at_least=True)


def _within(outcome: Outcome) -> list[float]:
    return [(outcome.linf <= radius / 255 + RADIUS_TOLERANCE).float().mean().item() for radius in RADII]


def _cost_table(trial: Trial, options: argparse.Namespace) -> Iterator[str]:
    """Seconds of each attack at the budget, against as many plain passes."""
    model, pixels, target = trial.model, trial.pixels[:COST_IMAGES], trial.target[:COST_IMAGES]

    def plain() -> None:
        """The parameters hold no gradient here, and cost none: it is the image's that an attack needs."""
        for _ in range(BUDGET):
            inputs = pixels.clone().requires_grad_()
            torch.autograd.grad(model(inputs).gather(1, target[:, None]).sum(), inputs)
        with torch.no_grad():
            for _ in range(COST_FORWARDS):
                model(pixels)

    calls: dict[str, Callable[[], object]] = {"plain": plain}
    limits = {}
    for norm in options.norms:
        if not options.peers_only:
            limits[f"ours, {norm}"] = 1.05
            calls[f"ours, {norm}"] = partial(ours(norm, BUDGET), model, pixels, target)
        for name, peer in PEERS.items():
            if norm in peer.norms and name in options.peers and missing(peer.package) is None:
                calls[f"{name}, {norm}"] = partial(peer.build(norm, BUDGET), model, pixels, target)
    seconds = interleaved(calls, options.rounds)
    yield f"\n### {trial.name}: time of {BUDGET} steps on {len(pixels)} images\n"
    yield f"Against {BUDGET} forwards and backwards and {COST_FORWARDS} forwards; medians of {options.rounds} rounds.\n"
    yield "| | limit | measured | |\n|---|---|---|---|"
    for name in calls:
        if name != "plain":
            yield _asked(name, limits.get(name), ratio(seconds, name, "plain"))


def _conduct_table(trial: Trial, options: argparse.Namespace) -> Iterator[str]:
    """What each attack does to a model in the middle of training."""
    attacks: dict[str, Attack] = {} if options.peers_only else {f"ours, {norm}": ours(norm, 4) for norm in NORMS}
    for name, peer in PEERS.items():
        if name in options.peers and missing(peer.package) is None:
            attacks[name] = peer.build(peer.norms[0], 4)
    yield f"\n### {trial.name}: what is left on a model in training, one block of it frozen in evaluation mode\n"
    yield "| | runs the model | random state of torch | leaves behind |\n|---|---|---|---|"
    for name, attack in attacks.items():
        yield f"| {name} | {' | '.join(conduct(attack, trial))} |"


def _curve_table(trial: Trial, options: argparse.Namespace) -> Iterator[str]:
    yield from curve_table(trial, ours("linf", LONG), LONG, options.cache)


def _asked(what: str, bound: float | None, measured: float, at_least: bool = False) -> str:
    if bound is None:
        return f"| {what} | – | {measured:.2f} | |"
    met = measured >= bound if at_least else measured <= bound
    return f"| {what} | {'≥' if at_least else '≤'} {bound:.2f} | {measured:.3f} | {'met' if met else 'missed'} |"


if __name__ == "__main__":
    main()
