"""How the weights of a file fit a model; `load_state_dict` of PyTorch is the oracle where it has an opinion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from purerun.checkpoint import CheckpointError
from purerun.checkpoint.matching import Match, Row, WeightsDiffer, match
from purerun.naming import Naming

NAMES = ("a.weight", "a.bias", "b.weight")
SHAPES = st.sampled_from([(), (2,), (2, 3)])


class Bag(nn.Module):
    """A module with the parameters that it is told."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.zeros(shape)))


def flat(shapes, fill):
    return {name.replace(".", "_"): torch.full(shape, fill) for name, shape in shapes.items()}


@given(st.dictionaries(st.sampled_from(NAMES), SHAPES), st.dictionaries(st.sampled_from(NAMES), SHAPES))
def test_what_does_not_fit_is_what_pytorch_says(model, file):
    """Missing, unexpected, of another shape: the same names."""
    taken, fit = match(flat(model, 0.0), flat(file, 1.0), "file")
    module = Bag(model)
    fitting = {name: tensor for name, tensor in flat(file, 1.0).items() if name not in {row.name for row in fit.rows}}
    expected = module.load_state_dict(
        {**fitting, **{r.name: torch.ones(()) for r in fit.rows if r.what == "unexpected"}}, strict=False
    )

    assert set(expected.missing_keys) == {row.name for row in fit.rows if row.what in ("missing", "mismatched")}
    assert set(expected.unexpected_keys) == {row.name for row in fit.rows if row.what == "unexpected"}
    assert {name for name, param in module.named_parameters() if param.sum()} == set(taken) == set(fit.taken)


def test_the_table_says_what_was_expected_and_what_was_found():
    """One line for each name, in columns."""
    wanted = {"body.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2), "n": torch.tensor(0)}
    found = {"body.weight": torch.zeros(2, 4), "tail.bias": torch.zeros(3), "n": torch.tensor(1.5)}
    _, fit = match(wanted, found, "a.pth")

    assert [
        "a.pth: 0 tensors taken, 1 missing, 1 unexpected, 2 mismatched",
        "            name         expected        found",
        "missing     head.bias    float32 [2]     -",
        "unexpected  tail.bias    -               float32 [3]",
        "mismatched  body.weight  float32 [2, 3]  float32 [2, 4]",
        "mismatched  n            int64 []        float32 []",
    ] == str(fit).splitlines()


def test_a_long_table_is_cut():
    """That it is another model is seen from the first rows."""
    rows = tuple(Row("missing", f"layer.{n}") for n in range(1000))

    assert 43 == len(str(Match("a", (), rows)).splitlines())
    assert "... and 960 more" == str(Match("a", (), rows)).splitlines()[-1]


def test_what_is_taken_is_as_the_model_has_it():
    """Dtype and memory layout are the model's, the values the file's."""
    want = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    have = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    taken, _ = match({"w": want}, {"w": have}, "file")

    assert (torch.float32, want.stride()) == (taken["w"].dtype, taken["w"].stride())
    assert torch.equal(have.float(), taken["w"])


def test_renaming_is_by_regular_expressions_in_order():
    """As MMEngine's revise_keys: anywhere in the name, unless tied to an end of it."""
    found = {"module.net.net.weight": torch.ones(2), "module.net.bias": torch.ones(2)}
    taken, fit = match(
        {"body.net.weight": torch.zeros(2), "body.bias": torch.zeros(2)},
        found,
        "file",
        rename={r"^module\.": "", r"^net\.(.*)$": r"body.\1"},
    )

    assert () == fit.rows
    assert {"body.net.weight", "body.bias"} == set(taken)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"(": ""}, r"expected a regular expression to rename by, got '\('"),
        ({"a": r"\2"}, "expected a regular expression to rename by, got 'a'"),
        ({"[ab]": "c"}, "expected names that stay different, but b is renamed to c"),
    ],
)
def test_renaming_that_cannot_be_is_refused(rename, message):
    """What is no pattern, and what would make one name of two."""
    with pytest.raises(CheckpointError, match=message):
        match({}, {"a": torch.ones(1), "b": torch.ones(1)}, "file", rename=rename)


@pytest.mark.parametrize(
    ("model", "file", "hint"),
    [
        (("a.w", "b.w"), ("backbone.a.w", "backbone.b.w"), r"as by --rename '^backbone\.='"),
        (("net.a.w", "net.b.w"), ("a.w", "b.w", "c.w"), "as by --rename '^=net.'"),
        (("a.w", "b.w"), ("c.w",), ""),
        (("a.w",), ("a.w", "b.w"), ""),
    ],
)
def test_a_prefix_more_or_less_is_noticed(model, file, hint):
    """The commonest reason of all: it is said how to rename."""
    _, fit = match({name: torch.zeros(1) for name in model}, {name: torch.ones(1) for name in file}, "file")

    assert hint == fit.hint
    assert hint in str(WeightsDiffer(fit))


def test_the_hint_is_what_helps():
    """Renamed as it says, all fits."""
    wanted, found = {"a.w": torch.zeros(1)}, {"model.net.a.w": torch.ones(1)}
    _, fit = match(wanted, found, "file")
    pattern = fit.hint.removeprefix("as by --rename '").removesuffix("='")

    assert () == match(wanted, found, "file", rename={pattern: ""})[1].rows


def test_counters_that_old_norms_lack_are_not_missed():
    """Files from before torch 0.4.1 have no num_batches_tracked; a norm that is not there at all is missed."""
    norm = nn.BatchNorm1d(2).state_dict()
    old = {name: tensor for name, tensor in norm.items() if name != "num_batches_tracked"}
    wanted = {f"{layer}.{name}": tensor for layer in "ab" for name, tensor in norm.items()}
    _, fit = match(wanted, {f"a.{name}": tensor for name, tensor in old.items()}, "file")

    assert {f"b.{name}" for name in norm} == {row.name for row in fit.rows}


def test_a_part_that_is_really_called_module_keeps_its_name():
    """Though the reading has taken it for DataParallel's."""
    assert () == match({"module.w": torch.zeros(2)}, {"w": torch.ones(2)}, "file")[1].rows


TIED = Naming(first={"head": "embed"}, unsaved={"mask"})


@pytest.mark.parametrize("names", [("embed", "head"), ("embed",), ("head",)])
def test_tied_weights_may_be_under_any_of_their_names(names):
    """`state_dict` has them under all, a safetensors file of others perhaps under the second alone."""
    found = {name: torch.ones(2) for name in names}
    taken, fit = match({"embed": torch.zeros(2), "mask": torch.zeros(3)}, found, "file", naming=TIED)

    assert (("embed",), ()) == (fit.taken, fit.rows)
    assert [1.0, 1.0] == taken["embed"].tolist()


def test_weights_that_are_no_longer_tied_are_noticed():
    """One of two different tensors would be lost."""
    _, fit = match({"embed": torch.zeros(2)}, {"embed": torch.ones(2), "head": torch.zeros(2)}, "file", naming=TIED)

    assert (Row("mismatched", "head", "that of embed", "another"),) == fit.rows


def test_a_tie_that_only_the_file_knows_is_no_surprise():
    """Two names of one tensor, of which the model has one."""
    tied = torch.ones(2)

    assert () == match({"embed": torch.zeros(2)}, {"embed": tied, "head": tied}, "file")[1].rows
    assert 1 == len(match({"embed": torch.zeros(2)}, {"embed": tied, "head": torch.ones(2)}, "file")[1].rows)
