"""Metric classes equal their functions on all entries, in any batches, on two processes, after copying and storing."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_attngrad import metrics
from tests.metrics.two_processes import CASES, ENTRIES, MAP_CASES, RADII, SHARES, Case, batch, run_both

NAMES = list(CASES)
WITHOUT_ROWS = "ignore:The ``compute`` method of metric .* was called before the ``update`` method"


def _same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True, check_dtype=False)


def _updated(case: Case, batches: list[list[int]]) -> Metric:
    metric = case.make()
    for chosen in batches:
        metric.update(**batch(case.entries, chosen))
    return metric


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 7, ENTRIES])
def test_batches_add_up_to_the_function_on_all_entries(name: str, size: int) -> None:
    case = CASES[name]
    batches = [list(range(start, min(start + size, ENTRIES))) for start in range(0, ENTRIES, size)]
    metric = _updated(case, [*batches[:2], [], *batches[2:]])
    _same(metric.compute(), case.expected(**case.entries))
    metric.update(**case.entries)  # counting goes on after a result
    twice = {key: torch.cat([values, values]) for key, values in case.entries.items()}
    _same(metric.compute(), case.expected(**twice))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_returns_its_own_entries_and_adds_them(name: str) -> None:
    case, metric = CASES[name], CASES[name].make()
    first, second = batch(case.entries, list(range(9))), batch(case.entries, list(range(9, ENTRIES)))
    _same(metric(**first), case.expected(**first))
    metric.update(**second)
    _same(metric.compute(), case.expected(**case.entries))
    _same(metric(**first), case.expected(**first))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings(WITHOUT_ROWS)
def test_without_an_entry_the_result_is_nan_and_so_it_is_after_a_reset(name: str) -> None:
    case = CASES[name]
    nothing = case.expected(**batch(case.entries, []))
    metric = case.make()
    _same(metric.compute(), nothing)
    assert _flat(metric.compute()).dtype == torch.float32
    metric.update(**case.entries)
    assert not torch.equal(_flat(metric.compute()).isnan(), _flat(nothing).isnan())
    metric.reset()
    _same(metric.compute(), nothing)


def _flat(result: Any) -> Tensor:
    values = result.values() if isinstance(result, dict) else [result]
    return torch.cat([value.flatten() for value in values])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings(WITHOUT_ROWS)
def test_copied_pickled_and_stored(name: str) -> None:
    case = CASES[name]
    metric = _updated(case, [list(range(12))])
    rest, expected = batch(case.entries, list(range(12, ENTRIES))), case.expected(**case.entries)
    assert metric.state_dict() == {}
    metric.persistent(True)
    stored = case.make()
    stored.persistent(True)
    stored.load_state_dict(metric.state_dict())
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric)), stored):
        copy.update(**rest)
        _same(copy.compute(), expected)
    _same(metric.compute(), case.expected(**batch(case.entries, list(range(12)))))  # the original did not move


@pytest.mark.parametrize("name", NAMES)
def test_in_another_type(name: str) -> None:
    case = CASES[name]
    metric = case.make().set_dtype(torch.float64)
    metric.update(**{key: v.double() if v.is_floating_point() else v for key, v in case.entries.items()})
    _same(metric.compute(), case.expected(**case.entries))


@pytest.fixture(scope="module")
def computed_by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], list[Any]]]:
    return run_both(tmp_path_factory.mktemp("two_metrics"))


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("division", SHARES)
def test_two_processes_have_the_numbers_of_one(computed_by_two, name: str, division: str) -> None:
    case = CASES[name]
    entries = [row for share in SHARES[division] for chosen in share for row in chosen]
    assert sorted(entries) in ([], list(range(ENTRIES)))
    expected = case.expected(**batch(case.entries, sorted(entries)))
    for rank in range(2):
        for found in computed_by_two[rank][division, name]:
            _same(found, expected)


def test_a_collection_does_not_mix_up_counts_that_agree_by_chance() -> None:
    """A MetricCollection shares states that are equal after the first batch: here none was rewritten."""
    cases = {name: case for name, case in CASES.items() if name not in MAP_CASES}
    entries = {key: values for case in cases.values() for key, values in case.entries.items()}
    first, second = batch(entries, list(range(4))), batch(entries, list(range(4, ENTRIES)))
    first["distance"] = torch.full((4,), math.inf)
    first["correct"], first["survived"], first["success"] = (torch.zeros(4, dtype=torch.bool) for _ in range(3))

    def members() -> dict[str, Metric]:
        other = {
            "success further": metrics.RewriteSuccess([0.05, 0.1, 0.2]),
            "robust further": metrics.RobustAccuracy([0.05, 0.1, 0.2]),
            "area further": metrics.AreaUnderSuccess(0.05, 0.2),
            "ratio wider": metrics.PairedLogRatio(confidence=0.99),
        }
        return {name: case.make() for name, case in cases.items()} | other

    collection, alone = MetricCollection(members()), members()
    for entries_of_step in (first, second):
        collection.update(**entries_of_step)
        for metric in alone.values():
            metric.update(**metric._filter_kwargs(**entries_of_step))
    for name, metric in alone.items():
        _same(collection[name].compute(), metric.compute())
    assert len(collection.compute_groups) == len(alone) - 1  # the two ratios do share their entries


def test_a_collection_keeps_metrics_of_maps_apart() -> None:
    """In the first batch maps are the masks and equal each other: every localisation is 1, every distance 0."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(ENTRIES, 4, 5, generator=generator) < 0.5
    entries = {key: mask.float() for case in MAP_CASES.values() for key in case.entries} | CASES["heads"].entries
    entries |= {"mask": mask, "mask_right": mask, "mask_wrong": ~mask}
    for key in ("heatmap", "now", "runner_up_maps", "maps_of_redrawn", "after"):
        entries[key] = mask.float()
        entries[key][4:] = torch.randn(ENTRIES - 4, 4, 5, generator=generator)
    cases = MAP_CASES | {"shift": CASES["shift"]}
    entries["before"] = mask.float()
    collection = MetricCollection({name: case.make() for name, case in cases.items()})
    for chosen in (list(range(4)), list(range(4, ENTRIES))):
        collection.update(**batch(entries, chosen))
    for name, case in cases.items():
        _same(collection[name].compute(), case.expected(**{key: entries[key] for key in case.entries}))
    assert len(collection.compute_groups) == len(cases)


D, FLAGS, CLASSES, IMAGES = (
    torch.tensor([0.1, 0.2]),
    torch.tensor([True, False]),
    torch.tensor([0, 5]),
    torch.ones(2, 3, 8, 8),
)
REFUSED: list[tuple[Callable[[], object], str]] = [
    *[(lambda r=r: metrics.RewriteSuccess(r), "radii: got") for r in ([], [-1.0], [math.inf], [math.nan], 0.1)],
    (lambda: metrics.RobustAccuracy([]), "radii: got"),
    (lambda: metrics.RewriteDistance([1.5]), "q: got"),
    (lambda: metrics.AreaUnderSuccess(0, 1), "low, high: got"),
    (lambda: metrics.RewriteMatrix(0), "num_classes: got"),
    (lambda: metrics.PairedLogRatio(confidence=95), "confidence: got"),
    (lambda: metrics.PairedLogRatio(resamples=0), "resamples: got"),
    (lambda: metrics.RewriteSuccess(RADII, radius=0.1), "Unexpected keyword arguments"),
    (lambda: metrics.RewriteSuccess(RADII).update(-D), "distance: got 2 of 2 pairs"),
    (lambda: metrics.RewriteDistance().update(D * math.nan), "distance: got 2 of 2 pairs"),
    (lambda: metrics.AreaUnderSuccess(0.1, 1).update(-D), "distance: got"),
    (lambda: metrics.RobustAccuracy(RADII).update(D, CLASSES), "correct: got"),
    (lambda: metrics.EightBitSurvival().update(FLAGS, FLAGS[:1]), "survived: got"),
    (lambda: metrics.RewriteQuality().update(IMAGES, IMAGES, FLAGS[:1]), "success: got"),
    (lambda: metrics.RewriteQuality().update(IMAGES, IMAGES * 2, FLAGS), "rewritten: got"),
    (lambda: metrics.RewriteMatrix(5).update(D, CLASSES, CLASSES), "source: got classes from 0 to 5"),
    (lambda: metrics.PairedLogRatio().update(D, D[:1]), "expected as many"),
    (lambda: metrics.MapShift().update(IMAGES, IMAGES[..., :4]), "a, b: got"),
    (lambda: metrics.AttentionHeadStatistics(0, 2), "layers: got"),
    (
        lambda: metrics.AttentionHeadStatistics(2, 2).update(*[torch.ones(5, 3, 2)] * 3, torch.ones(5, 3)),
        "entropy: got",
    ),
    (lambda: metrics.MapStatistics().update(torch.ones(4, 4)), "heatmap: got"),
    (lambda: metrics.MapDrift().update(*[torch.ones(2, 2, 4, 4)] * 3), "now: got"),
    (lambda: metrics.MapDrift().update(*[torch.ones(2, 4, 4)] * 2, torch.ones(2, 4, 5)), "a, b: got"),
    (lambda: metrics.PointingGame().update(torch.ones(2, 4, 4), torch.ones(1, 4, 4)), "heatmap, mask: got"),
    (lambda: metrics.EnergyInMask().update(torch.ones(2, 4, 4), torch.ones(2, 4, 4) * 2), "mask: got"),
    (lambda: metrics.ClassSensitivity().update(torch.ones(2, 4, 4), torch.ones(2, 4, 5)), "a, b: got"),
    (lambda: metrics.Deletion(0), "patches: got"),
    (lambda: metrics.Deletion(4, steps=0), "steps: got"),
    (lambda: metrics.Deletion(4, 2).update(torch.ones(2, 2)), r"morf: got shape \(2, 2\)"),
    (lambda: metrics.Insertion(4, 2).update(torch.ones(3)), "lerf: got shape"),
    (lambda: metrics.Insertion(4, 2).update(torch.ones(1, 3, dtype=torch.long)), "lerf: got shape"),
    (lambda: metrics.Deletion(4, 2).update(torch.full((1, 3), 1.5)), "morf: got values from 1.5 to 1.5"),
    (
        lambda: metrics.SymmetricRelevanceGain(4, 2).update(torch.ones(2, 3), torch.ones(1, 3)),
        r"morf, lerf: got \[2, 1\] images",
    ),
    (lambda: metrics.SaCo().update(torch.ones(2, 3), torch.ones(2, 4)), "salience, drop: got shapes"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=itertools.count())
def test_what_is_no_pair_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_batch_leaves_no_trace(name: str) -> None:
    case = CASES[name]
    metric = _updated(case, [list(range(ENTRIES))])
    *others, last = case.entries
    too_short = {key: case.entries[key] for key in others} | {last: case.entries[last][:-1]}
    if not others:
        too_short[last] = case.entries[last][0]  # of one row, without the dimension of entries
    with pytest.raises(ValueError, match="got"):
        metric.update(**too_short)
    _same(metric.compute(), case.expected(**case.entries))


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    backend = mpl.get_backend()
    mpl.use("Agg")
    yield
    plt.close("all")
    mpl.use(backend)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # torchmetrics hands over tensors
def test_each_draws_itself(name: str) -> None:
    metric = _updated(CASES[name], [list(range(ENTRIES))])
    figure, axis = metric.plot()
    figure.canvas.draw()
    assert axis.lines or axis.images
    given_axis = plt.figure().add_subplot()
    assert metric.plot(metric.compute(), given_axis)[1] is given_axis
    if name != "matrix":
        _, axis = metric.plot([metric.compute(), metric.compute(), metric.compute()])
        assert axis.get_xlabel() == "Step"
        assert all(len(line.get_xdata()) in (2, 3) for line in axis.lines)  # of 2: the line at zero


@pytest.mark.parametrize("make", [metrics.RewriteSuccess, metrics.RobustAccuracy])
@pytest.mark.parametrize("radii", [[0.1, 0.01, 0.04], [0.0, 0.1, 0.01], [0.0, 0.0], [0.04]])
def test_a_share_is_drawn_over_its_radii(make: type[Metric], radii: list[float]) -> None:
    metric = make(radii)
    metric.update(**CASES["robust" if make is metrics.RobustAccuracy else "success"].entries)
    figure, axis = metric.plot()
    figure.canvas.draw()
    line = axis.get_lines()[-1]
    if len(radii) > 1:
        assert list(line.get_xdata()) == pytest.approx(sorted(radii))
        order = torch.tensor(radii).argsort()
        assert list(line.get_ydata()) == pytest.approx(metric.compute()[order].tolist())
        assert axis.get_xscale() == ("log" if min(radii) > 0 else "symlog")
    else:
        assert list(line.get_ydata()) == pytest.approx([float(metric.compute())])


@pytest.mark.parametrize("name", ["deletion", "insertion", "srg"])
def test_faithfulness_is_drawn_as_its_mean_curves(name: str) -> None:
    case = CASES[name]
    metric = _updated(case, [list(range(ENTRIES))])
    figure, axis = metric.plot()
    figure.canvas.draw()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(case.entries)
    known = ~torch.stack([curve.isnan().any(dim=1) for curve in case.entries.values()]).any(dim=0)
    for line, curve in zip(axis.get_lines(), case.entries.values(), strict=True):
        assert [round(9 * share) for share in line.get_xdata()] == [0, 2, 5, 7, 9]
        assert list(line.get_ydata()) == pytest.approx(curve[known].mean(dim=0).tolist())
    assert len(axis.collections) == (name == "srg")  # the area between


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_matrix_tells_failures_from_pairs_without_an_entry() -> None:
    metric = metrics.RewriteMatrix(3)
    metric.update(torch.tensor([0.1, 0.4, math.inf]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    _, axis = metric.plot()
    image = axis.get_images()[-1]
    assert image.get_clim() == pytest.approx((0, 0.4))
    colours = image.to_rgba(image.get_array())
    assert tuple(colours[2, 0]) == pytest.approx((0.8, 0.8, 0.8, 1))
    assert colours[0, 0, 3] == 0
    assert len({tuple(colours[place]) for place in [(0, 0), (0, 1), (1, 2), (2, 0)]}) == 4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("distance", [0.0, math.inf])
def test_a_matrix_without_a_length_is_drawn(distance: float) -> None:
    metric = metrics.RewriteMatrix(50)
    metric.update(torch.tensor([distance]), torch.tensor([0]), torch.tensor([1]))
    figure, axis = metric.plot()
    figure.canvas.draw()
    assert len(axis.get_xticks()) <= 20


def test_names_are_loaded_when_asked_for() -> None:
    assert set(metrics.__all__) <= set(dir(metrics))
    for name in metrics.__all__:
        assert getattr(metrics, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        metrics.Nothing  # noqa: B018
    assert {type(case.make()).__name__ for case in CASES.values()} == set(metrics.__all__)


@pytest.mark.parametrize("make", [metrics.RewriteSuccess, metrics.RobustAccuracy])
def test_a_distance_on_the_radius_lies_within_it_in_any_type(make: type[Metric]) -> None:
    for radius in (1 / 255, 8 / 255, 16 / 255, 0.1, 0.7):  # float32 rounds the last one down
        for dtype in (torch.float32, torch.float64):
            metric = make([radius])
            distance = torch.tensor([radius], dtype=dtype)
            others = [torch.tensor([True])] if make is metrics.RobustAccuracy else []
            metric.update(distance, *others)
            assert float(metric.compute()) == (make is metrics.RewriteSuccess)
