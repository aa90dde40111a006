"""Which score makes a checkpoint the best one of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from purerun.valid import one_of

Rule: TypeAlias = Literal["greater", "less"]

# MMEngine's, so that its users find the checkpoints that they know (CheckpointHook, 0.10.7).
_GREATER = ("acc", "top", "ar@", "auc", "precision", "map", "mdice", "miou", "macc", "aacc")
_LESS = ("loss",)


def rule_of(metric: str) -> Rule:
    """Infer from the name of a metric whether a greater or a lesser value is better.

    As MMEngine does: a known name, else a known part of it, whatever the case.

    Raises:
        ValueError: the name says neither.

    >>> rule_of("accuracy"), rule_of("coco/bbox_mAP"), rule_of("val_loss")
    ('greater', 'greater', 'less')
    >>> rule_of("error")
    Traceback (most recent call last):
    ...
    ValueError: whether a greater or a lesser 'error' is better cannot be told from its name; say rule='greater' or ...
    """
    name = metric.lower()
    for known, rule in ((_GREATER, "greater"), (_LESS, "less")):
        if name in known:
            return rule  # type: ignore[return-value]
    for parts, rule in ((_GREATER, "greater"), (_LESS, "less")):
        if any(part in name for part in parts):
            return rule  # type: ignore[return-value]
    raise ValueError(
        f"whether a greater or a lesser {metric!r} is better cannot be told from its name; "
        "say rule='greater' or rule='less'"
    )


@attrs.frozen
class Best:
    """Keep the checkpoint with the best value of a score.

    Attributes:
        metric: the name of the score, as the state has it.
        rule: "greater" or "less"; inferred from the name unless given.

    >>> Best("accuracy")
    Best(metric='accuracy', rule='greater')
    """

    metric: str = attrs.field(validator=attrs.validators.instance_of(str))
    rule: Rule = attrs.field(validator=one_of("greater", "less"))

    @rule.default
    def _inferred(self) -> Rule:
        return rule_of(self.metric)

    @property
    def pointer(self) -> str:
        """The name of the file that names the best checkpoint.

        >>> Best("coco/bbox_mAP").pointer
        'best_coco_bbox_mAP'
        """
        return "best_" + "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in self.metric)

    def among(self, scores: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Name the best of some checkpoints; the first of equals, and None where none has this score.

        Args:
            scores: name of the checkpoint -> its scores, the earliest first.  NaN is never the best.

        >>> Best("loss").among({"a": {"loss": 0.5}, "b": {"loss": 0.2}, "c": {"loss": 0.2}, "d": {"loss": "nan"}})
        'b'
        """
        sign = 1.0 if self.rule == "greater" else -1.0
        values = {name: sign * float(each[self.metric]) for name, each in scores.items() if self.metric in each}
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        return max(known, key=lambda name: known[name]) if known else None


def bests(given: str | Best | list[str | Best] | tuple[str | Best, ...]) -> tuple[Best, ...]:
    """Read what a user says of the best: a name, a `Best`, or several.

    >>> bests(["accuracy", Best("error", "less")])
    (Best(metric='accuracy', rule='greater'), Best(metric='error', rule='less'))
    """
    several = given if isinstance(given, list | tuple) else (given,)
    return tuple(each if isinstance(each, Best) else Best(each) for each in several)
