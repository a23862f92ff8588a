"""What batch normalisation on the posterior costs, and what padding does, as ratios measured in one run on one thread.

    make bench

A step is forward, backward and Adam, of the book's sentence VAE (1,000 words, embedding 32, hidden 64, n 8) on 64
sentences of 5 to 17 tokens:

    plain      the usual Gaussian posterior
    paper      `BatchNormPosterior(gamma=0.6)`: the mean standardised
    Su         `BatchNormPosterior(tau=0.5)`: mean and standard deviation standardised

    padded     the encoder's LSTM over whole rows, padding and all, with its gradient
    packed     the same over `pack_padded_sequence`

    mixed      thirteen steps of the plain VAE on batches of mixed lengths
    alike      thirteen on batches of one length each, 5 to 17: as many tokens, no padding

What is compared takes turns, many rounds; the ratios are those of medians.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from clock import medians
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vaelab import device
from vaelab.models.sentence_vae import SentenceEncoder, sentence_vae
from vaelab.posteriors import BatchNormPosterior
from vaelab.text import EOS, PAD, UNK, Sentences

WORDS, LATENT, BATCH, ROUNDS = 1000, 8, 64, 200
LENGTHS = torch.arange(5, 18)  # as often one as the other
POSTERIORS = {
    "plain": lambda: None,
    "paper": lambda: BatchNormPosterior(LATENT, gamma=0.6),
    "Su": lambda: BatchNormPosterior(LATENT, tau=0.5),
}
Step = Callable[[], None]


def sentences(lengths: Tensor) -> Sentences:
    """Sentences of these (N,) lengths, of words drawn at random."""
    tokens = torch.randint(UNK + 1, WORDS, (len(lengths), int(lengths.max())))  # (N, T)
    place = torch.arange(tokens.shape[1])
    tokens.masked_fill_(place == lengths[:, None] - 1, EOS).masked_fill_(place >= lengths[:, None], PAD)
    return Sentences(tokens, lengths, torch.zeros_like(lengths)).to(device())


def training(batches: list[Sentences], posterior: nn.Module | None = None) -> Step:
    """Return a function that trains a sentence VAE for one step on each of the batches."""
    torch.manual_seed(0)
    model = sentence_vae(WORDS, LATENT, posterior).to(device())
    optimiser = torch.optim.Adam(model.parameters(), fused=True)

    def steps():
        for x in batches:
            optimiser.zero_grad(set_to_none=True)
            (-model(x).elbo.mean()).backward()
            optimiser.step()

    return steps


def reading(x: Sentences, packed: bool) -> Step:
    """Return a function that runs the encoder's LSTM to every sentence's last state, forward and backward."""
    torch.manual_seed(0)
    encoder = SentenceEncoder(WORDS, LATENT).to(device())

    def last_states() -> Tensor:
        words = pack_padded_sequence(encoder.embedding(x.tokens), x.lengths, batch_first=True, enforce_sorted=False)
        return encoder.head(encoder.lstm(words)[1][0][0])

    def step():
        encoder.zero_grad(set_to_none=True)
        (last_states() if packed else torch.cat(encoder(x), 1)).sum().backward()

    return step


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    every = LENGTHS.repeat(BATCH)[torch.randperm(len(LENGTHS) * BATCH)]
    mixed = [sentences(lengths) for lengths in every.split(BATCH)]
    alike = [sentences(length.expand(BATCH)) for length in LENGTHS]
    step = medians({name: training(mixed[:1], make()) for name, make in POSTERIORS.items()}, ROUNDS, warm_up=10)
    paper, su = step["paper"] / step["plain"], step["Su"] / step["plain"]
    print(f"a training step takes {1e3 * step['plain']:.2f} ms; with batch normalisation, the paper's way, "
          f"{paper:.3f} times that, Su's {su:.3f} (target at most 1.05)")
    read = medians({"padded": reading(mixed[0], False), "packed": reading(mixed[0], True)}, ROUNDS, warm_up=10)
    real = int(mixed[0].lengths.sum())
    print(f"the encoder reads {real / read['padded'] / 1e3:.0f} thousand tokens a second padded, "
          f"{real / read['packed'] / 1e3:.0f} packed: padded is {read['packed'] / read['padded']:.2f} times as fast")
    train = medians({"mixed": training(mixed), "alike": training(alike)}, ROUNDS // 10, warm_up=1)
    print(f"training sees {int(every.sum()) / train['mixed'] / 1e3:.0f} thousand tokens a second in batches of mixed "
          f"lengths, {int(every.sum()) / train['alike'] / 1e3:.0f} in batches of one length: "
          f"{train['mixed'] / train['alike']:.2f} times as many")


if __name__ == "__main__":
    main()
