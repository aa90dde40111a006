"""What a check raises: which law is broken, at which iteration, in which leaf, and why."""

from __future__ import annotations


class LawBroken(AssertionError):
    """A law does not hold.

    Attributes:
        law: the law, in one word.
        cause: what was seen, what was expected, and what to look at.
        iteration: finished iterations at which it showed; None where that means nothing.
        leaf: path of the leaf in which it showed; "" where that means nothing.

    >>> print(LawBroken("purity", "the step wrote into it", iteration=3, leaf="params/fc.weight"))
    purity is broken at iteration 3, in `params/fc.weight`: the step wrote into it
    """

    def __init__(self, law: str, cause: str, *, iteration: int | None = None, leaf: str = "") -> None:
        self.law, self.cause, self.iteration, self.leaf = law, cause, iteration, leaf
        when = f" at iteration {iteration}" if iteration is not None else ""
        where = f", in `{leaf}`" if leaf else ""
        super().__init__(f"{law} is broken{when}{where}: {cause}")
