"""BalanceExplorer: set the KL of latent groups, and read what balancing makes each of them pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import traitlets

from vaelab.widgets.base import Slider

ALT = (
    "Bars for each latent group of a hierarchical VAE: its coefficient gamma, the price of one more nat in it, and its "
    "KL before and after balancing. Sliders set the KL of each group; others say by what it is divided, how strongly "
    "it is balanced, and whether the gradient flows through gamma."
)
DIVISORS = ("nothing", "size", "scale", "typo")  # the browser has their long names
HIGHEST, GROUPS = 30.0, (2, 8)  # nats on a group's slider; how few and how many groups fit the figure
TINY = float(np.finfo(np.float64).tiny) ** 0.5  # as in balance_kl: it keeps a price where all KL is zero


class Prices(NamedTuple):
    """What balancing makes of the groups' KL."""

    gamma: np.ndarray  # (G,) the coefficients; their sum is G
    price: np.ndarray  # (G,) the loss's derivative by each K_i: gamma, or what the gradient through gamma makes of it
    plain: float  # sum over groups of K_i, nats
    balanced: float  # sum over groups of gamma_i K_i


class BalanceExplorer(Slider):
    """KL balancing of the latent groups of a hierarchical VAE: `vaelab.divergences.balance_kl`, moved by hand.

    Its loss is sum_i gamma_i K_i. As shipped, no gradient flows through gamma, so one more nat in group i costs
    gamma_i. Let it through, and a weak group's next nat lowers the others' bill by more than its own price: its
    derivative is negative, and the group is paid to grow.

    Args:
        kl: (G,) K_i, the KL of each group, nats, in [0, 30]; 2 to 8 groups.
        sizes: (G,) the positions of each group's map.
        divide: By what K_i is divided. "nothing" (DVAE++), "size" (NVAE's maintainer), "scale" (NVAE as shipped:
            the size over the number of groups of that size), or "typo": multiplied by the size, as its paper prints.
        strength: The phase of training: 1 balances, 0 is the plain bound.
        through: Whether the gradient flows through gamma.
        floor: Share of the mean K_i added to each, so that a group without KL keeps a price.
        alt: A description for who cannot see the figure.

    Attributes:
        kl, sizes, divide, strength, through, floor: What the reader picked. Setting them moves the figure; the number
            of groups stays.

    Raises:
        ValueError: When kl or sizes are too few, too many, of two lengths or out of range; when divide is none of
            the four; when strength is outside [0, 1]; when floor is not positive.

    >>> explorer = BalanceExplorer(kl=(3.0, 1.0), sizes=(16, 16), floor=1e-9)
    >>> explorer.numbers().gamma.round(3), round(explorer.numbers().balanced, 3)
    (array([1.5, 0.5]), 5.0)
    """

    kl = traitlets.List(traitlets.Float()).tag(sync=True)
    sizes = traitlets.List(traitlets.Float()).tag(sync=True)
    divide = traitlets.Unicode("size").tag(sync=True)
    strength = traitlets.Float(1.0).tag(sync=True)
    through = traitlets.Bool(False).tag(sync=True)
    floor = traitlets.Float(1e-3).tag(sync=True)

    def __init__(
        self,
        kl: Sequence[float] = (6.0, 1.0, 12.0, 20.0, 3.0),
        sizes: Sequence[float] = (16, 16, 64, 64, 64),
        divide: str = "size",
        strength: float = 1.0,
        through: bool = False,
        floor: float = 1e-3,
        alt: str = ALT,
    ) -> None:
        kl, sizes = [float(k) for k in kl], [float(size) for size in sizes]
        if not GROUPS[0] <= len(kl) <= GROUPS[1]:
            raise ValueError(f"kl must hold {GROUPS[0]} to {GROUPS[1]} numbers, one a group, got {len(kl)}")
        super().__init__(
            kl=kl, sizes=sizes, divide=divide, strength=strength, through=through, floor=floor, alt=alt
        )

    def numbers(self) -> Prices:
        """Return what the browser draws, for the present setting."""
        a, kl, count = self._effective_sizes(), np.array(self.kl), len(self.kl)
        w = kl / max(kl.max(), TINY**2)
        share = (w + self.floor * w.mean() + TINY) / a  # (G,)
        gamma = 1 + self.strength * (share / share.mean() - 1)
        price = gamma
        if self.through:  # the product rule: gamma_i + sum_j K_j dgamma_j/dK_i
            own = w / a + self.floor / count * (w / a).sum()
            others = (w * share).sum() / share.mean() * (1 / a + self.floor / count * (1 / a).sum()) / count
            price = gamma + self.strength * (own - others) / share.mean()
        return Prices(gamma, price, float(kl.sum()), float(gamma @ kl))

    def still(self) -> np.ndarray:
        """Return gamma around the line 1 above, K_i (grey) beside gamma_i K_i (black) below: (160, 320)."""
        gamma, _, _, _ = self.numbers()
        kl = np.array(self.kl)
        ink, width = np.zeros((160, 320)), 320 // len(kl)
        per_gamma, per_nat = 64 / max(2.0, gamma.max()), 72 / max(1.0, kl.max(), (gamma * kl).max())
        one = 68 - round(per_gamma)
        for i, (coefficient, nats) in enumerate(zip(gamma, kl)):
            left, third = i * width, width // 3
            top, bottom = sorted([one, 68 - round(per_gamma * coefficient)])
            ink[top : bottom + 1, left + third : left + 2 * third] = 1.0
            ink[156 - round(per_nat * nats) : 156, left + third // 2 : left + 3 * third // 2] = 0.4
            ink[156 - round(per_nat * coefficient * nats) : 156, left + 3 * third // 2 : left + 5 * third // 2] = 1.0
        ink[[one, 156]] = 1.0
        return ink

    def _effective_sizes(self) -> np.ndarray:
        """Return what each K_i is divided by, with mean 1: (G,)."""
        sizes = np.array(self.sizes)
        alike = (sizes[:, None] == sizes).sum(1)  # groups of the same size
        a = {"nothing": np.ones_like(sizes), "size": sizes, "scale": sizes / alike, "typo": 1 / sizes}[self.divide]
        return a / a.mean()

    @traitlets.validate("kl", "sizes")
    def _check_groups(self, proposal: dict) -> list[float]:
        name, value = proposal["trait"].name, proposal["value"]
        count = len(self.sizes if name == "kl" else self.kl)
        if count and len(value) != count:
            raise ValueError(f"{name} must hold {count} numbers, one a group, got {len(value)}")
        right = [0 <= number <= HIGHEST if name == "kl" else 0 < number < math.inf for number in value]
        if not all(right):
            allowed = f"in [0, {HIGHEST:g}]" if name == "kl" else "finite and positive"
            raise ValueError(f"{name} must be {allowed}, got {value[right.index(False)]}")
        return value

    @traitlets.validate("strength", "floor")
    def _check_number(self, proposal: dict) -> float:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "strength" and not 0 <= value <= 1:
            raise ValueError(f"strength must be in [0, 1], got {value}")
        if name == "floor" and not 0 < value < math.inf:
            raise ValueError(f"floor must be finite and positive, got {value}")
        return value

    @traitlets.validate("divide")
    def _check_divide(self, proposal: dict) -> str:
        if proposal["value"] not in DIVISORS:
            raise ValueError(f"divide must be one of {DIVISORS}, got {proposal['value']!r}")
        return proposal["value"]
