"""Augmentations of a whole batch of images, keyed: each image's fate depends on its own position only.

Geometry is written out number by number, not as matrix products or vectorised sines: those may round an image's
coordinates differently in a batch of another size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import attrs
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from purerun.batch import entry as _entry
from purerun.data.chance import Chance
from purerun.data.nest import replaced


class Augment(ABC):
    """A frozen value `(batch, chance) -> batch` that draws from its `chance` and from nothing else.

    A Loader takes any function of these two; of an Augment it knows that the global generators
    need not be set and put back.
    """

    @abstractmethod
    def __call__(self, batch: Any, chance: Chance) -> Any:
        """Make the augmented batch."""


@attrs.frozen
class ImageAugment(Augment):
    """An augmentation of the images of a batch: floats, shape [n, channels, height, width].

    Attributes:
        entry: where the batch keeps them, by name or by place.
    """

    entry: str | int = attrs.field(default="image", kw_only=True)

    @abstractmethod
    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the augmented images: shape and dtype stay."""

    def __call__(self, batch: Any, chance: Chance) -> Any:
        """Make the batch with augmented images."""
        image = _entry(batch, self.entry)
        if not isinstance(image, Tensor) or image.ndim != 4:
            got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                f"expected images of shape [n, channels, height, width] at {self.entry!r}, got {got}; "
                f"give {type(self).__name__} the entry that holds them"
            )
        return replaced(batch, self.entry, self.apply(image, chance))


@attrs.frozen
class Compose(Augment):
    """Augmentations one after the other, each with a chance of its own.

    >>> batch = {"image": torch.rand(4, 1, 8, 8)}
    >>> chance = Chance(pr.Key.of(0, "sample", 0), torch.arange(4))
    >>> Compose([Shift(1), Noise(0.1)])(batch, chance)["image"].shape
    torch.Size([4, 1, 8, 8])
    """

    parts: tuple[Augment, ...] = attrs.field(
        converter=tuple, validator=attrs.validators.deep_iterable(attrs.validators.instance_of(Augment))
    )

    def __call__(self, batch: Any, chance: Chance) -> Any:
        """Make the batch that has been through all parts."""
        for place, part in enumerate(self.parts):
            batch = part(batch, chance.fold_in(place))
        return batch


@attrs.frozen
class Shift(ImageAugment):
    """Move each image by whole pixels, up to `pixels` each way; zeros come in.

    The same as padding by `pixels` and cropping at random.
    """

    pixels: int = attrs.field(validator=attrs.validators.ge(0))

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the moved images."""
        count, channels, height, width = image.shape
        offset = chance.integers(0, 2 * self.pixels + 1, 2).to(image.device)
        rows = offset[:, :1] + torch.arange(height, device=image.device)
        columns = offset[:, 1:] + torch.arange(width, device=image.device)
        padded = pad(image, (self.pixels,) * 4)
        samples = torch.arange(count, device=image.device).view(-1, 1, 1, 1)
        planes = torch.arange(channels, device=image.device).view(1, -1, 1, 1)
        return padded[samples, planes, rows.view(count, 1, -1, 1), columns.view(count, 1, 1, -1)]


@attrs.frozen
class Affine(ImageAugment):
    """Rotate, scale, shear and move each image about its centre; bilinear.

    Attributes:
        degrees: rotation by an angle in [-degrees, degrees].
        translate: move by up to this part of the height and width.
        scale: enlarge by a factor in this interval.
        shear: slant by an angle in [-shear, shear] degrees.
        padding: what comes in: "zeros", or the nearest "border" pixel.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    padding: Literal["zeros", "border"] = attrs.field(
        default="zeros", validator=attrs.validators.in_(("zeros", "border"))
    )

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the warped images."""
        aspect = image.shape[3] / image.shape[2]
        rows = torch.tensor([self._matrix(aspect, *draw) for draw in chance.uniform(5).tolist()])
        grid = _grid(rows.view(-1, 6).to(image), image.shape[2], image.shape[3])
        return grid_sample(image, grid, mode="bilinear", padding_mode=self.padding, align_corners=False)

    def _matrix(self, aspect: float, turn: float, right: float, down: float, size: float, slant: float) -> list[float]:
        """Say where an output pixel is read: x' = a x + b y + c, y' = d x + e y + f, in half images.

        The inverse of "shear, scale, rotate, move"; `aspect` is width / height, because an angle
        is one of pixels, and the other five are draws in [0, 1).
        """
        angle = math.radians(self.degrees * (2 * turn - 1))
        shear = math.tan(math.radians(self.shear * (2 * slant - 1)))
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * size
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        a, b, d, e = cos + shear * sin, (sin - shear * cos) / aspect, -sin * aspect, cos
        x, y = 2 * self.translate * (2 * right - 1), 2 * self.translate * (2 * down - 1)
        return [a, b, -(a * x + b * y), d, e, -(d * x + e * y)]


@attrs.frozen
class Rotate(ImageAugment):
    """Rotate each image about its centre by an angle in [-degrees, degrees]; zeros come in."""

    degrees: float

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the rotated images."""
        return Affine(self.degrees).apply(image, chance)


@attrs.frozen
class Flip(ImageAugment):
    """Mirror each image with probability `p`, left to right ("horizontal") or top to bottom ("vertical")."""

    p: float = 0.5
    axis: Literal["horizontal", "vertical"] = attrs.field(
        default="horizontal", validator=attrs.validators.in_(("horizontal", "vertical"))
    )

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the mirrored images."""
        chosen = (chance.uniform(1) < self.p).to(image.device).view(-1, 1, 1, 1)
        return torch.where(chosen, image.flip(3 if self.axis == "horizontal" else 2), image)


@attrs.frozen
class Noise(ImageAugment):
    """Add normal noise of standard deviation `std` to every pixel."""

    std: float

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the noisy images."""
        noise = chance.normal(math.prod(image.shape[1:])).view(image.shape)
        return image + self.std * noise.to(image)


@attrs.frozen
class Erase(ImageAugment):
    """Blank a rectangle of each image with probability `p`.

    Like cutout (DeVries and Taylor, "Improved regularization of convolutional neural networks
    with cutout", 2017), with sides and centre drawn; what lies outside of the image is cut off.

    Attributes:
        p: probability of an image to lose a part.
        sides: interval of the rectangle's height and width, as parts of the image's.
        value: what is written there.
    """

    p: float = 0.5
    sides: tuple[float, float] = (0.1, 0.4)
    value: float = 0.0

    def apply(self, image: Tensor, chance: Chance) -> Tensor:
        """Make the images with a part blanked."""
        p, top, left, height, width = chance.uniform(5).to(image.device).unbind(1)
        rows = self._inside(top, height, image.shape[2])
        columns = self._inside(left, width, image.shape[3])
        erased = rows[:, None, :, None] & columns[:, None, None, :] & (p < self.p).view(-1, 1, 1, 1)
        return torch.where(erased, self.value, image)

    def _inside(self, centre: Tensor, side: Tensor, length: int) -> Tensor:
        half = (self.sides[0] + (self.sides[1] - self.sides[0]) * side) / 2
        pixels = (torch.arange(length, device=centre.device) + 0.5) / length
        return (pixels - centre[:, None]).abs() <= half[:, None]


def _grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Where each output pixel is read: shape [n, height, width, 2], for matrices of shape [n, 6]."""
    x = ((2 * torch.arange(width) + 1) / width - 1).to(matrices)
    y = ((2 * torch.arange(height) + 1) / height - 1).to(matrices).view(-1, 1)
    a, b, c, d, e, f = (column.view(-1, 1, 1) for column in matrices.unbind(1))
    return torch.stack((a * x + b * y + c, d * x + e * y + f), dim=-1)
