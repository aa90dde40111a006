"""torchmetrics' metrics as values: the plain use of torchmetrics is the oracle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
import torchmetrics as tm
from torch import Tensor
from torchmetrics import classification as tmc
from torchmetrics.aggregation import RunningMean
from torchmetrics.segmentation import MeanIoU

from purerun import batch as _batch
from purerun.metrics import Torchmetrics
from purerun.testing.metrics import check_metric, run
from tests.metrics.tables import THEIRS, Row, numbers, scores

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EACH_ROW = pytest.mark.parametrize("row", THEIRS, ids=lambda row: row.name)


def _plain(row: Row, batches: Any) -> tm.Metric:
    """Use the metric as torchmetrics' own documentation does."""
    return _feed(row.metric.metric.clone(), row, batches)


def _feed(metric: tm.Metric, row: Row, batches: Any) -> tm.Metric:
    for output, batch in batches:
        if row.metric.arguments is not None:
            metric.update(**row.metric.arguments(output, batch))
            continue
        preds = output if row.metric.preds is None else row.metric.preds(output)
        metric.update(*([preds] if row.metric.target is None else [preds, _batch.entry(batch, row.metric.target)]))
    return metric


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Mapping):
        result = list(result.values())
    return [t for item in result for t in _flat(item)] if isinstance(result, list | tuple) else [result]


def _equal(a: Any, b: Any) -> bool:
    pairs = list(zip(_flat(a), _flat(b), strict=True))
    return bool(pairs) and all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


@EACH_ROW
def test_plain_use(row: Row):
    """One update after the other gives the bits of torchmetrics."""
    batches = row.batches()

    assert _equal(_plain(row, batches).compute(), row.metric.compute(run(row.metric, batches)))


@EACH_ROW
def test_one_batch(row: Row):
    """A single update gives the bits of torchmetrics."""
    batches = row.batches((12,))

    assert _equal(_plain(row, batches).compute(), row.metric.compute(run(row.metric, batches)))


@EACH_ROW
def test_tensor_states_are_the_tally(row: Row):
    """Each tensor state is an entry of the tally, with the same bits; stacked ones as their only row."""
    batches = row.batches()
    tally, plain = run(row.metric, batches), _plain(row, batches)

    for name, value in plain.metric_state.items():
        if isinstance(value, Tensor) and name in tally:
            assert torch.equal(value, tally[name].reshape(value.shape))


@pytest.mark.parametrize("row", [r for r in THEIRS if r.metric.metric.full_state_update is False], ids=lambda r: r.name)
def test_merge_state(row: Row):
    """Where torchmetrics can merge, merging gives the same."""
    if isinstance(row.metric.metric, tm.MultioutputWrapper | tm.ClasswiseWrapper):
        pytest.skip("merge_state of torchmetrics does not reach the metrics inside a wrapper")
    batches = row.batches()
    late, early = _plain(row, batches[:2]), _plain(row, batches[2:])
    early.merge_state(late)

    merged = row.metric.merge(run(row.metric, batches[:2]), run(row.metric, batches[2:]))

    pairs = zip(_flat(early.compute()), _flat(row.metric.compute(merged)), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(expected, found, rtol=row.tolerance, atol=row.tolerance)


def _synced(metrics: list[tm.Metric]) -> tm.Metric:
    """Let torchmetrics synchronise, with a gather that hands out what each process sent."""
    sent: list[list[Tensor]] = []
    for metric in metrics:
        sent.append([])
        metric.clone()._sync_dist(lambda value, group=None: (sent[-1].append(value), [value])[1])
    places = iter(range(len(sent[0])))

    def gather(value: Tensor, group: Any = None) -> list[Tensor]:
        place = next(places)
        return [each[place] for each in sent]

    together = metrics[0].clone()
    together._sync_dist(gather)
    return together


# torchmetrics gathers lists of no rule element by element, which needs equally many on each process.
SYNCED = [r for r in THEIRS if r.name not in {"tm by class", "tm by output", "tm composed", "tm shared"}]


@pytest.mark.parametrize("row", SYNCED, ids=lambda row: row.name)
def test_synchronised_processes(row: Row):
    """Reducing processes gives what torchmetrics' own synchronisation gives."""
    batches = row.batches((4, 7, 5, 9, 3, 6))
    shares = [batches[rank::3] for rank in range(3)]

    expected = _synced([_plain(row, share) for share in shares]).compute()
    found = row.metric.compute(row.metric.reduce([run(row.metric, share) for share in shares]))

    for x, y in zip(_flat(expected), _flat(found), strict=True):
        torch.testing.assert_close(x, y, rtol=row.tolerance, atol=row.tolerance)


def _held(metric: tm.Metric) -> dict[str, str]:
    kinds = (Tensor, dict, list, set, tuple, bool, int, float, str, type(None))
    return {
        f"{path}.{name}": repr(value)
        for path, each in metric.named_modules()
        for name, value in vars(each).items()
        if isinstance(value, kinds)
    }


@EACH_ROW
def test_the_given_metric_is_never_changed(row: Row):
    """The user's instance keeps its states and all its attributes, and what it counts later changes no value."""
    mine = row.metric.metric.clone()
    before = _held(mine)
    batches = row.batches()
    wrapped = attrs.evolve(row.metric, metric=mine)

    wrapped.compute(wrapped.merge(run(wrapped, batches[:2]), run(wrapped, batches[2:])))

    assert before == _held(mine)
    _feed(mine, row, batches)
    assert _equal(row.metric.compute(run(row.metric, batches)), wrapped.compute(run(wrapped, batches)))


def test_a_used_metric_starts_anew():
    """What the given instance has already counted does not count."""
    used = tm.SumMetric()
    used.update(5.0)

    assert 0.0 == float(Torchmetrics(used, target=None).init()["sum_value"])
    assert 5.0 == float(used.compute())


def test_lists_are_held_in_few_pieces():
    """A list that grows is joined in such a way that few entries are left, and in order."""
    metric = Torchmetrics(tm.CatMetric(), target=None)

    tally = run(metric, [(torch.tensor([float(n), n + 0.5]), None) for n in range(100)])

    assert len(tally) <= 1 + 7
    assert torch.equal(torch.arange(200) / 2, metric.compute(tally))


def test_elements_whose_bounds_matter_stay_apart():
    """The elements of a list that is not concatenated are kept as they are."""

    class Boxes(tm.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("boxes", [], dist_reduce_fx=None)

        def update(self, boxes: Tensor) -> None:
            self.boxes.append(boxes)

        def compute(self) -> Tensor:
            return torch.tensor([float(len(boxes)) for boxes in self.boxes])

    metric = Torchmetrics(Boxes(), target=None)
    a, b = (run(metric, [(torch.rand(n, 4), None) for n in counts]) for counts in ((3, 0, 12), (1, 5)))

    assert [3.0, 0.0, 12.0, 1.0, 5.0] == metric.compute(metric.merge(a, b)).tolist()
    assert [(3, 4), (0, 4), (12, 4)] == [tuple(a[f"boxes.{n}"].shape) for n in range(3)]


def test_a_list_holds_copies():
    """Writing into an output after the update does not reach the tally."""
    metric = Torchmetrics(tm.CatMetric(nan_strategy="disable"), target=None)
    output = torch.ones(3)

    tally = metric.update(metric.init(), output, None)
    output.zero_()

    assert [1.0, 1.0, 1.0] == metric.compute(tally).tolist()


class _Custom(tm.Metric):
    """A state of each kind that the library itself hardly has."""

    full_state_update = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("norm", torch.tensor(0.0), dist_reduce_fx=lambda parts: parts.norm(dim=0))
        self.add_state("rows", torch.zeros(0, 2), dist_reduce_fx="cat")

    def update(self, value: Tensor) -> None:
        self.mean = (self.mean * self.seen + value.mean()) / (self.seen + 1)
        self.seen += 1
        self.norm = torch.stack([self.norm, value.norm()]).norm()
        self.rows = torch.cat([self.rows, value[:1, None].expand(1, 2)])

    def compute(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "norm": self.norm,
            "rows": len(self.rows),
            "both": (self.seen, {"twice": 2 * self.seen}),
        }


def test_states_of_every_rule():
    """Means are weighted by updates, custom functions see the stacked states, tensors are concatenated."""
    metric = Torchmetrics(_Custom(), target=None)
    batches = [(torch.randn(4), None) for _ in range(5)]

    score = metric.compute(metric.merge(run(metric, batches[:1]), run(metric, batches[1:])))

    plain = _Custom()
    for output, _ in batches:
        plain.update(output)
    assert float(plain.compute()["mean"]) == pytest.approx(float(score["mean"]), abs=1e-6)
    assert float(torch.cat([output for output, _ in batches]).norm()) == pytest.approx(float(score["norm"]), abs=1e-5)
    assert {"rows": 5, "both/0": 5, "both/1/twice": 10} == {
        k: int(score[k]) for k in ("rows", "both/0", "both/1/twice")
    }
    check_metric(
        Torchmetrics(_Custom(), target=None), [(torch.randn(4), torch.zeros(4)) for _ in range(4)],
        tolerance=1e-5, ordered=True, grows=True,
    )  # fmt: skip


class _Counting(tm.Metric):
    """Counts in Python, in several ways."""

    full_state_update = False

    def __init__(self, how: str) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.how = how
        self.count, self.seen, self.table, self.tensor = 0, [], {"a": [0]}, torch.zeros(1)
        self.register_buffer("buffer", torch.zeros(1))

    def update(self, value: Tensor) -> None:
        self.total += value.sum()
        if self.how == "count":
            self.count += 1
        elif self.how == "seen":
            self.seen.append(1)
        elif self.how == "table":
            self.table["a"][0] += 1
        elif self.how == "fresh":
            self.late = 1
        else:
            vars(self).get(self.how, self._buffers.get(self.how)).add_(1)

    def compute(self) -> Tensor:
        return self.total


@pytest.mark.parametrize("how", ["count", "seen", "table", "tensor", "buffer", "fresh"])
def test_memory_outside_the_states_is_refused(how: str):
    """A metric that remembers in Python, in a plain tensor or in a buffer is an error that names what changed."""
    metric = Torchmetrics(_Counting(how), target=None)

    with pytest.raises(TypeError, match=f"it changed '{'late' if how == 'fresh' else how}', which no tally carries"):
        metric.update(metric.init(), torch.ones(2), None)


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (RunningMean(window=3), "_num_vals_seen"),
        (MeanIoU(), "_is_initialized"),
    ],
)
def test_metrics_of_the_library_that_remember(metric: tm.Metric, names: str):
    """The few metrics of torchmetrics that cannot be values are refused at the first update."""
    wrapped = Torchmetrics(metric, target=None if isinstance(metric, RunningMean) else 1)
    batch = torch.randint(2, (2, 3, 4, 4))

    with pytest.raises(TypeError, match=names):
        wrapped.update(wrapped.init(), batch, (0, batch))


def test_a_metric_that_remembers_scores_is_refused():
    """The extremes over earlier computations are no function of the data."""
    metric = Torchmetrics(tm.MinMaxMetric(tm.MeanSquaredError()))

    with pytest.raises(TypeError, match="max_val"):
        metric.compute(run(metric, [(torch.ones(3), (0, torch.zeros(3)))]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tm.MetricCollection([tm.MeanSquaredError()]), "name its metrics one by one"),
        (tm.MeanSquaredError, "make one, e.g. BinaryAUROC()"),
        ("mse", "expected an instance of torchmetrics.Metric, got 'mse'"),
    ],
)
def test_other_things_are_refused(given: Any, message: str):
    """What is no metric is an error when it is given."""
    with pytest.raises(TypeError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Torchmetrics(given)


def test_lists_that_are_no_tensors_are_refused():
    """A list state that holds anything else than tensors cannot be a tally."""

    class Words(tm.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("words", [], dist_reduce_fx=None)

        def update(self, words: list[str]) -> None:
            self.words += words

        def compute(self) -> int:
            return len(self.words)

    metric = Torchmetrics(Words(), target=None)

    with pytest.raises(TypeError, match="expected tensors in the list state 'words', got str"):
        metric.update(metric.init(), ["a"], None)


def test_lists_with_another_rule_are_refused():
    """A list that is summed has no meaning here."""
    metric = tm.SumMetric()
    metric.add_state("parts", [], dist_reduce_fx="sum")

    with pytest.raises(TypeError, match="for the list state 'parts' of SumMetric, got 'sum'"):
        Torchmetrics(metric).init()


def test_no_synchronisation_of_its_own():
    """In a distributed process computing does not gather: that is the loop's to do."""

    def gather(*_: Any) -> Any:
        raise AssertionError("gathered")

    mine = tm.MeanSquaredError(distributed_available_fn=lambda: True, dist_sync_fn=gather)
    for metric in (Torchmetrics(mine), Torchmetrics(mine + 1.0)):
        assert metric.compute(run(metric, [numbers(4)])) >= 0


def test_equal_settings_are_equal_values():
    """Two wrappers are equal when class, settings and entries are; the text of one names its settings."""
    auroc = [Torchmetrics(tmc.MulticlassAUROC(3, thresholds=t)) for t in (5, 5, 7)]

    assert auroc[0] == auroc[1] != auroc[2]
    assert hash(auroc[0]) == hash(auroc[1])
    assert Torchmetrics(tm.MeanSquaredError()) != Torchmetrics(tm.MeanAbsoluteError())
    assert Torchmetrics(tm.MeanSquaredError(), target=0) != Torchmetrics(tm.MeanSquaredError())
    assert "MulticlassAccuracy(" in repr(Torchmetrics(tmc.MulticlassAccuracy(3)))
    assert "top_k=2" in repr(Torchmetrics(tm.ClasswiseWrapper(tmc.MulticlassAccuracy(3, top_k=2, average=None))))


def test_blank_has_the_names_of_the_scores():
    """The scores before any validation are known where the metric can compute from nothing."""
    by_class = Torchmetrics(tm.ClasswiseWrapper(tmc.MulticlassRecall(3, average=None), labels=["a", "b", "c"]))

    scored = by_class.compute(run(by_class, [scores(9)]))

    assert list(scored) == list(by_class.blank())
    assert Torchmetrics(tmc.BinaryAUROC()).blank().isnan()


def test_torchmetrics_is_imported_by_those_who_use_it():
    """Our own metrics come without torchmetrics."""
    code = (
        "import sys, torch, purerun.metrics as m; a = m.Accuracy(); "
        "a.compute(a.update(a.init(), torch.eye(3), (0, torch.arange(3)))); sys.exit('torchmetrics' in sys.modules)"
    )

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.cuda
@EACH_ROW
def test_on_a_device(row: Row):
    """A tally on a device stays there, thresholds and all, and scores as on the CPU."""

    def moved(value: Any) -> Any:
        return _batch.move(value, torch.device("cuda"))

    batches = row.batches()
    tally = row.metric.init("cuda")
    for output, batch in batches:
        tally = row.metric.update(tally, moved(output), moved(batch))
    merged = row.metric.merge(row.metric.init("cuda"), row.metric.reduce([tally]))

    assert {"cuda"} == {value.device.type for value in merged.values()}
    expected = row.metric.compute(run(row.metric, batches))
    for x, y in zip(_flat(expected), _flat(row.metric.compute(merged)), strict=True):
        torch.testing.assert_close(x, y.cpu(), rtol=1e-4, atol=1e-4)
