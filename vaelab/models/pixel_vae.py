r"""A VAE of binary images whose decoder could do without its code: every pixel is told all that came before it.

The story it tells about an image, line by line, pixels in raster order (left to right, then down)::

    p(z)             = normal(0, I)                  # what cannot be guessed from the pixels so far, if anything
    p(x_i|x_<i, z)   = bernoulli(decoder(x_<i, z))   # the next pixel, from those before it and z
    p(x|z)           = product over i of p(x_i|x_<i, z)
    q(z|x)           = normal(encoder(x))            # the guess at z that training needs

Pixels given z are independent in an ordinary decoder, so all they share must pass through z. Here the pixels
before say nearly as much as z could; a nat of KL then buys little, and training easily gives z up.

Source: the decoder after van den Oord et al. 2016 (Pixel recurrent neural networks, arXiv 1601.06759), section 3.4
and figure 2; as the decoder of a VAE: Gulrajani et al. 2017 (PixelVAE, arXiv 1611.05013), Chen et al. 2017
(Variational lossy autoencoder, arXiv 1611.02731).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.models.vae import VAE
from vaelab.networks import mlp


class PixelEncoder(nn.Module):
    """Map binary images to the two raw outputs that a posterior of `vaelab.posteriors` takes.

    x (N, 1, size, size), zeros and ones -> mu (N, latent_dim), spread (N, latent_dim)

    Args:
        size: images are (N, 1, size, size).
        latent_dim: length of z.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: on call, for images of another shape, or with a pixel that is neither 0 nor 1.

    >>> mu, spread = PixelEncoder(size=4, latent_dim=2)(torch.ones(3, 1, 4, 4))
    >>> mu.shape, spread.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    def __init__(self, size: int, latent_dim: int, hidden: tuple[int, ...] = (256,)):
        super().__init__()
        self.size = size
        self.net = mlp(size * size, hidden, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _check_images(x, self.size)
        mu, spread = self.net(x.flatten(1)).chunk(2, dim=1)
        return mu, spread


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees only what comes before a pixel in raster order, and itself if its kind is B.

    h (N, inputs, height, width) -> (N, outputs, height, width)

    A kernel x kernel window would have its rows below the centre masked all over; they are left out, so that
    `weight` is (outputs, inputs, (kernel + 1) / 2, kernel) and its last row is the centre's. In that row `mask` stops
    after the centre (B) or before it (A). The weight is masked at each use; a masked entry has no effect and no
    gradient. Beyond the edges of the image there are zeros.

    Args:
        inputs, outputs: numbers of channels.
        kernel: width of the window, odd.
        kind: "A" hides the centre, for the layer that looks at the image; "B" shows it, for those on top of that one.

    Raises:
        ValueError: an even kernel, one below 1, or another kind.

    Source: van den Oord et al. 2016 (arXiv 1601.06759), section 3.4 and figure 2.

    >>> MaskedConv2d(1, 1, kernel=3, kind="A").mask
    tensor([[1., 1., 1.],
            [1., 0., 0.]])
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, kind: str):
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd and at least 1, to have a centre")
        if kind not in ("A", "B"):
            raise ValueError(f"kind is {kind!r}; it must be 'A' or 'B'")
        self.reach = kernel // 2  # pixels seen to the left, to the right and above
        super().__init__(inputs, outputs, (self.reach + 1, kernel), padding=(0, self.reach))
        mask = torch.ones(self.reach + 1, kernel)
        mask[-1, self.reach + (kind == "B") :] = 0
        self.register_buffer("mask", mask, persistent=False)  # kernel and kind say it all: no need to save it

    def forward(self, h: Tensor) -> Tensor:
        above = F.pad(h, (0, 0, self.reach, 0))  # rows on top only: (N, inputs, reach + height, width)
        return F.conv2d(above, self.weight * self.mask, self.bias, padding=self.padding)


class PixelDecoder(nn.Module):
    r"""Give the cost of a binary image, each pixel told all pixels before it and z.

    x (N, 1, size, size), zeros and ones, and z (N, latent_dim) -> -log p(x|z) (N,), nats, summed over pixels

    Masked convolutions, the first of kind A and the others of kind B, with skip connections from layer to layer.
    The window of the first is 2 size - 1 wide, so that every pixel sees its whole past at once; with one input channel
    that costs no more than a later layer. Stacked small windows alone would see only as far as they reach, and leave a
    blind spot to the upper right (van den Oord et al. 2016, arXiv 1606.05328, section 2.2). A learned map b tells each
    pixel where it is, and z enters the first `z_layers` layers as a bias per channel, the same at every pixel:

    .. math:: h_1 = \text{relu}(A * x + b + U_1 z), \quad h_l = h_{l-1} + \text{relu}(B_l * h_{l-1} + U_l z), \quad
        \text{logits} = w \cdot h_L + c

    The fewer layers take z, the less training gets from it: at one step size (Adam, 0.004), a plain VAE that gave z to
    the first layer alone all but stopped using it, and one that gave it to all three kept about a nat.

    Args:
        size: images are (N, 1, size, size).
        latent_dim: length of z.
        channels, layers: of the masked convolutions.
        kernel: width of their windows after the first.
        z_layers: how many layers take z.

    Raises:
        ValueError: layers below 1, z_layers outside [1, layers], or an even kernel; on call, images of another shape
            or with a pixel that is neither 0 nor 1, or z of another shape.
    """

    def __init__(
        self, size: int, latent_dim: int, channels: int = 16, layers: int = 3, kernel: int = 5, z_layers: int = 1
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}; it must be at least 1")
        if not 1 <= z_layers <= layers:
            raise ValueError(f"z_layers is {z_layers}; it must be from 1 to layers, which is {layers}")
        self.size, self.latent_dim, self.z_layers = size, latent_dim, z_layers
        masked = [MaskedConv2d(channels, channels, kernel, "B") for _ in range(layers - 1)]
        self.layers = nn.ModuleList([MaskedConv2d(1, channels, 2 * size - 1, "A"), *masked])
        self.place = nn.Parameter(torch.zeros(channels, size, size))
        self.code = nn.Linear(latent_dim, z_layers * channels, bias=False)  # of all layers at once
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        cost = F.binary_cross_entropy_with_logits(self.logits(x, z), x, reduction="none")  # (N, 1, size, size)
        return cost.sum((1, 2, 3))

    def logits(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_i=1|x_<i,z) - log p(x_i=0|x_<i,z) for all pixels i at once: (N, 1, size, size).

        Args:
            x: (N, 1, size, size), zeros and ones.
            z: (N, latent_dim).
        """
        _check_images(x, self.size)
        self._check_codes(z, rows=len(x))
        return self._stack(x, self._shifts(z))

    @torch.no_grad()
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a binary image for each row of z, pixel by pixel in raster order, which takes size^2 passes.

        Args:
            z: (N, latent_dim).
            generator: source of the noise, on whatever device, as in `reparametrise`.

        Returns:
            (N, 1, size, size), zeros and ones of the type of z.
        """
        self._check_codes(z, rows=len(z))
        shifts = self._shifts(z)
        source = generator.device if generator else z.device
        u = torch.rand(len(z), 1, self.size, self.size, generator=generator, dtype=z.dtype, device=source).to(z.device)
        x = torch.zeros_like(u)
        for i in range(self.size):
            for j in range(self.size):
                logits = self._stack(x[:, :, : i + 1], shifts)  # no row below matters
                x[:, :, i, j] = (u[:, :, i, j] < logits[:, :, i, j].sigmoid()).to(x.dtype)
        return x

    def _shifts(self, z: Tensor) -> list[Tensor]:
        """Return what is added in every layer: the first gets the place, and the first `z_layers` z."""
        shifts = list(self.code(z)[:, :, None, None].chunk(self.z_layers, dim=1))  # (N, channels, 1, 1) each
        shifts += [z.new_zeros(())] * (len(self.layers) - self.z_layers)
        return [shifts[0] + self.place, *shifts[1:]]  # the first is (N, channels, size, size)

    def _stack(self, x: Tensor, shifts: list[Tensor]) -> Tensor:
        first, *rest = self.layers
        h = F.relu(first(x) + shifts[0][:, :, : x.shape[2]])  # (N, channels, height, size)
        for layer, shift in zip(rest, shifts[1:]):
            h = h + F.relu(layer(h) + shift)
        return self.head(h)  # (N, 1, height, size)

    def _check_codes(self, z: Tensor, rows: int) -> None:
        if z.shape != (rows, self.latent_dim):
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be ({rows}, {self.latent_dim})")


def _check_images(x: Tensor, size: int) -> None:
    """Raise unless x is (N, 1, size, size), zeros and ones: greys are no outcomes of a Bernoulli."""
    if x.shape[1:] != (1, size, size):
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (N, 1, {size}, {size})")
    if not torch.equal(x, x.bool().to(x.dtype)):  # 20 microseconds for a batch of 64; NaN and infinity differ, too
        odd = x[x != x.bool().to(x.dtype)][0].item()
        raise ValueError(f"x holds {odd:g}; every pixel must be 0 or 1")


def pixel_vae(
    size: int,
    latent_dim: int,
    posterior: nn.Module | None = None,
    hidden: tuple[int, ...] = (256,),
    channels: int = 16,
    layers: int = 3,
    kernel: int = 5,
    z_layers: int = 1,
) -> VAE:
    """Return a VAE of images (N, 1, size, size), zeros and ones, with a `PixelEncoder` and a `PixelDecoder`.

    Args:
        posterior: as in `vaelab.models.vae.VAE`; None takes the encoder's outputs as they are.
        hidden: of the encoder.
        channels, layers, kernel, z_layers: of the decoder.

    Raises:
        ValueError: as the decoder does.

    >>> bound = pixel_vae(size=4, latent_dim=2)(torch.ones(3, 1, 4, 4))
    >>> bound.nll.shape, bound.kl.shape
    (torch.Size([3]), torch.Size([3, 2]))
    """
    decoder = PixelDecoder(size, latent_dim, channels, layers, kernel, z_layers)
    return VAE(PixelEncoder(size, latent_dim, hidden), posterior, decoder)
