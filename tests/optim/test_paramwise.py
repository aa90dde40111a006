"""`paramwise` means what MMEngine's `paramwise_cfg` means."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from purerun.optim import SGD, paramwise, partition

LR, DECAY = 0.1, 0.01


class Network(nn.Module):
    """Norms, biases, convolutions by channel, and parameters of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.bias = nn.Parameter(torch.ones(1))
        self.table = nn.Parameter(torch.ones(2, 2))
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3, groups=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8))
        self.neck = nn.ModuleDict({"norm": nn.LayerNorm(8), "in": nn.InstanceNorm2d(8, affine=True)})
        self.backbone_head = nn.Linear(8, 2)
        self.conv1d = nn.Conv1d(4, 4, 3, groups=4)
        self.rms = nn.RMSNorm(4)
        self.mha = nn.MultiheadAttention(4, 1)


factors = st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0])
keys = st.dictionaries(
    st.sampled_from(["backbone", "backbone_head", "backbone.0", "neck", "bias", "norm", "weight", "nothing", "back"]),
    st.fixed_dictionaries(
        {}, optional={"lr_mult": st.sampled_from([0.1, 3.0]), "decay_mult": st.sampled_from([0.0, 5.0])}
    ),
    max_size=4,
)
NAMES = ("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult", "dwconv_decay_mult")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MMEngine's own, when it is imported
@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, factors) | {"custom_keys": keys}))
def test_equals_mmengine(options):
    """For any options, each parameter has the learning rate and decay that MMEngine gives it."""
    mmengine = pytest.importorskip("mmengine")
    from mmengine.optim import DefaultOptimWrapperConstructor

    assert mmengine
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    given_options = {name: value for name, value in options.items() if value is not None and value != {}}
    model = Network()
    wrapper = DefaultOptimWrapperConstructor(
        {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": LR, "weight_decay": DECAY}}, given_options or None
    )(model)
    of = {id(param): name for name, param in model.named_parameters()}
    expected = {
        of[id(param)]: (pytest.approx(group["lr"]), pytest.approx(group["weight_decay"]))
        for group in wrapper.optimizer.param_groups
        for param in group["params"]
    }
    names = [name for name, _ in model.named_parameters()]
    buckets = partition(SGD(groups=paramwise(**options)).groups, model, names)

    assert expected == {
        name: (LR * mult.get("lr", 1.0), DECAY * mult.get("weight_decay", 1.0)) for own, mult in buckets for name in own
    }


def test_deformable_convolutions():
    """Offsets of deformable convolutions have a rate of their own, and their biases no other."""

    class DeformConv2d(nn.Module):
        """Stands for mmcv's."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))
            self.bias = nn.Parameter(torch.ones(2))
            self.conv_offset = nn.Conv2d(2, 2, 1)

    class DeformConv2dPack(DeformConv2d):
        """Stands for mmcv's too."""

    model = nn.ModuleDict({"dcn": DeformConv2dPack(), "fc": nn.Linear(2, 2)})
    names = [name for name, _ in model.named_parameters()]
    groups = paramwise(bias_lr_mult=2.0, dcn_offset_lr_mult=0.1, bias_decay_mult=0.0, flat_decay_mult=0.5)
    found = {name: mult for own, mult in partition(groups, model, names) for name in own}

    assert found == {
        "dcn.weight": {},
        "dcn.bias": {"lr": 2.0, "weight_decay": 0.0},
        "dcn.conv_offset.weight": {"lr": 0.1},
        "dcn.conv_offset.bias": {"lr": 0.1},
        "fc.weight": {},
        "fc.bias": {"lr": 2.0, "weight_decay": 0.0},
    }


def test_other_keys_are_refused():
    """What cannot be said as a factor is an error that says how to."""
    with pytest.raises(ValueError, match=r"expected lr_mult and decay_mult under custom_keys\['a'\], got \['betas'\]"):
        paramwise(custom_keys={"a": {"betas": 0.5}})


def test_few_buckets():
    """Where MMEngine makes a group for each parameter, equal factors share one."""
    model = Network()
    names = [name for name, _ in model.named_parameters()]

    assert len(partition(paramwise(norm_decay_mult=0.0, bias_lr_mult=2.0), model, names)) == 3
