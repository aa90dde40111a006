"""MMEngine's `paramwise_cfg` as groups."""

from __future__ import annotations

from collections.abc import Mapping
from glob import escape

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from purerun.optim.groups import Group
from purerun.optim.match import Kind, Match, Name, Ndim, Type


def paramwise(
    *,
    bias_lr_mult: float | None = None,
    bias_decay_mult: float | None = None,
    norm_decay_mult: float | None = None,
    flat_decay_mult: float | None = None,
    dwconv_decay_mult: float | None = None,
    dcn_offset_lr_mult: float | None = None,
    custom_keys: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[Group, ...]:
    """Make the groups that MMEngine's `paramwise_cfg` means.

    None of them needs to match anything, as there.  (`bypass_duplicate` is always so here: a
    shared parameter has one name.)

    Args:
        bias_lr_mult: of biases, but not of norms and of parts of deformable convolutions.
        bias_decay_mult: of biases, but not of norms that have a factor of their own.
        norm_decay_mult: of weights and biases of batch, instance, group and layer norms.
        flat_decay_mult: of parameters with one dimension that nothing above is about.
        dwconv_decay_mult: of `Conv2d` with a filter for each channel.
        dcn_offset_lr_mult: of `conv_offset` in deformable convolutions.
        custom_keys: part of a name -> `lr_mult` and `decay_mult`; the longest key that is part
            of a name counts, and nothing else does for that parameter.

    >>> from purerun.optim import SGD, partition
    >>> groups = paramwise(norm_decay_mult=0.0, bias_lr_mult=2.0)
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> for names, mult in partition(groups, model, [name for name, _ in model.named_parameters()]):
    ...     print(names, mult)
    ('0.weight',) {}
    ('0.bias',) {'lr': 2.0}
    ('1.weight', '1.bias') {'weight_decay': 0.0}
    """
    norm = Type([_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm])
    bias, part = Name(["bias", "*.bias"]), Kind("deformable")
    rates: list[tuple[Match, float | None]] = [
        (Name("*conv_offset*.*") & part & Type(nn.Conv2d), dcn_offset_lr_mult),
        (bias & ~norm & ~part, bias_lr_mult),
    ]
    decays: list[tuple[Match, float | None]] = [
        (norm, norm_decay_mult),
        (bias & ~part, bias_decay_mult),
        (Type(nn.Conv2d) & Kind("depthwise"), dwconv_decay_mult),
        (Ndim(1) & ~part, flat_decay_mult),
    ]
    return (
        *(
            _custom(key, (custom_keys or {})[key])
            for key in sorted(custom_keys or {}, key=lambda key: (-len(key), key))
        ),
        *(Group(match, lr_mult=factor, optional=True) for match, factor in rates if factor is not None),
        *(Group(match, decay_mult=factor, optional=True) for match, factor in decays if factor is not None),
    )


def _custom(key: str, factors: Mapping[str, float]) -> Group:
    unknown = sorted(set(factors) - {"lr_mult", "decay_mult"})
    if unknown:
        raise ValueError(
            f"expected lr_mult and decay_mult under custom_keys[{key!r}], got {unknown}; give factors of other "
            "hyper-parameters with Group(..., mult={...})"
        )
    # Both are said even when they are 1, because a custom key overrides every other rule.
    lr_mult, decay_mult = factors.get("lr_mult", 1.0), factors.get("decay_mult", 1.0)
    return Group(Name(f"*{escape(key)}*"), lr_mult=lr_mult, decay_mult=decay_mult, optional=True)
