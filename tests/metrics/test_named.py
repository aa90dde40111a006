"""Several metrics at once, by name."""

from __future__ import annotations

import pytest
import torch

from purerun import metrics
from purerun.batch import move
from purerun.metrics import F1, Accuracy, ConfusionMatrix, Last, Metric
from tests.metrics.tables import OURS, Row

BOTH = {"accuracy": Accuracy(), "last": Last(lambda output, batch: output.amax(1))}


def _batches():
    return [(torch.rand(size, 3), (0, torch.randint(3, (size,)))) for size in (3, 5, 2)]


def _tallies(batches):
    tallies = metrics.init(BOTH)
    for output, batch in batches:
        tallies = metrics.update(BOTH, tallies, output, batch)
    return tallies


def test_each_metric_does_its_own_part():
    """Init, update, merge, reduce and compute are those of each metric."""
    first, *rest = _batches()
    a, b = _tallies([first]), _tallies(rest)

    for joined, method in ((metrics.merge(BOTH, a, b), "merge"), (metrics.reduce(BOTH, [a, b]), "reduce")):
        expected = {
            name: metric.compute(
                metric.merge(a[name], b[name]) if method == "merge" else metric.reduce([a[name], b[name]])
            )
            for name, metric in BOTH.items()
        }
        assert expected == metrics.compute(BOTH, joined)


def test_several_scores_of_one_metric():
    """A metric that gives several scores has its name before each of them."""
    both = {"f1": F1(3), "confusion": ConfusionMatrix(3)}

    names = ["f1", "confusion/matrix", "confusion/precision", "confusion/recall", "confusion/f1"]
    assert names == list(metrics.compute(both, metrics.init(both)))
    assert names == list(metrics.blank(both))


def test_blanks_have_the_shapes_of_scores():
    """Before any validation the scores are NaN in the shapes that they will have."""
    both = {"f1": F1(3, "none"), "confusion": ConfusionMatrix(3)}
    output, batch = _batches()[0]

    blank = metrics.blank(both)
    scores = metrics.compute(both, metrics.update(both, metrics.init(both), output, batch))

    assert {name: score.shape for name, score in scores.items()} == {name: score.shape for name, score in blank.items()}
    assert all(score.isnan().all() for score in blank.values())


def test_two_scores_of_one_name_are_refused():
    """Names that collide are an error that names both metrics."""
    both = {"confusion/f1": F1(3), "confusion": ConfusionMatrix(3)}

    with pytest.raises(ValueError, match="metrics 'confusion/f1' and 'confusion' both give 'confusion/f1'; rename"):
        metrics.compute(both, metrics.init(both))


def test_metrics_are_values():
    """Metrics of the same settings are equal, can be keys, and cannot be changed."""
    assert Accuracy(topk=5) == Accuracy(topk=5) != Accuracy()
    assert 1 == len({F1(3), F1(3)})
    with pytest.raises(AttributeError):
        Accuracy().topk = 2


def test_a_metric_needs_its_four_methods():
    """A metric without one of its methods cannot be made."""
    with pytest.raises(TypeError, match="merge"):
        type("Half", (Metric,), {"init": None, "update": None, "compute": None})()


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_no_value_is_read(row: Row):
    """Counting and computing work on tensors without values, so they never wait for a device to hand one out."""
    meta = torch.device("meta")
    tally = row.metric.init(meta)

    for output, batch in row.batches():
        tally = row.metric.merge(row.metric.update(tally, move(output, meta), move(batch, meta)), row.metric.init(meta))
    score = row.metric.compute(row.metric.reduce([tally, tally]))

    assert {"meta"} == {value.device.type for value in (score.values() if isinstance(score, dict) else [score])}


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_mapped_over_runs(row: Row):
    """Many runs are judged at once under vmap, each with the score that it has alone."""

    def judged(output, batch):
        return metrics.compute({"m": row.metric}, {"m": row.metric.update(row.metric.init(), output, batch)})

    runs = row.batches((6, 6, 6))
    outputs, batches = torch.stack([output for output, _ in runs]), [batch for _, batch in runs]
    keys = list(batches[0]) if isinstance(batches[0], dict) else range(len(batches[0]))
    stacked = {key: torch.stack([batch[key] for batch in batches]) for key in keys}

    together = torch.vmap(judged)(outputs, stacked)

    for name, value in together.items():
        alone = torch.stack([judged(output, batch)[name] for output, batch in runs])
        torch.testing.assert_close(alone, value, rtol=1e-6, atol=1e-7)
