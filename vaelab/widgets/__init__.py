"""Sliders: figures that compute in the browser, in JupyterLab, in Colab and in the rendered page.

`static/host.js` runs them in the rendered page, where there is neither kernel nor network.
"""

from vaelab.widgets.balance import BalanceExplorer
from vaelab.widgets.base import Slider
from vaelab.widgets.bound import BoundExplorer
from vaelab.widgets.latent import LatentExplorer
from vaelab.widgets.moment import MomentExplorer
from vaelab.widgets.momentum import MomentumExplorer
from vaelab.widgets.runs import Point, RunExplorer
from vaelab.widgets.simplex import SimplexExplorer

__all__ = [
    "BalanceExplorer",
    "BoundExplorer",
    "LatentExplorer",
    "MomentExplorer",
    "MomentumExplorer",
    "Point",
    "RunExplorer",
    "SimplexExplorer",
    "Slider",
]
