r"""A VAE of sentences: an LSTM reads, an LSTM writes.

The decoder tells a sentence word by word, z in hand::

    p(x|z) = product over t of categorical(x_t | x_1 ... x_{t-1}, z)

It is a language model even without z: whatever the words so far foretell need not stand in the code. That is why
its KL vanishes so easily.

The shape is that of the official configuration of BN-VAE (one layer each; z joins every input and sets the first
state, c_0 = W z, h_0 = tanh(c_0)); sizes are arguments.
Source: Bowman et al. 2016 (arXiv 1511.06349); He et al. 2019 (arXiv 1901.05534); Zhu et al. 2020 (arXiv 2004.12585).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaelab.models.vae import VAE
from vaelab.text import BOS, EOS, PAD, UNK, Sentences


class SentenceEncoder(nn.Module):
    """Read sentences with an LSTM: `Sentences` of N -> (mu, spread), (N, latent_dim) each.

    Args:
        vocabulary_size: number of tokens. latent_dim: n.
        embedding, hidden: widths of the words' vectors and of the LSTM.
    """

    def __init__(self, vocabulary_size: int, latent_dim: int, embedding: int = 32, hidden: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2 * latent_dim)

    def forward(self, x: Sentences) -> tuple[Tensor, Tensor]:
        """Return the encoder's two raw outputs."""
        states, _ = self.lstm(self.embedding(x.tokens))  # (N, T) -> (N, T, hidden)
        # An LSTM does not look ahead: the state at the last word is the same with or without the padding behind it.
        last = (x.lengths - 1).to(states.device)[:, None, None].expand(-1, 1, states.shape[2])  # (N, 1, hidden)
        mu, spread = self.head(states.gather(1, last).squeeze(1)).chunk(2, dim=1)
        return mu, spread


class SentenceDecoder(nn.Module):
    """Write sentences with an LSTM that sees z at every step and in its first state.

    Args:
        vocabulary_size, latent_dim, embedding, hidden: as for the encoder.
        word_dropout: share of the words read, in training, that are replaced by `<unk>`: what the decoder
            cannot read it must learn from z (Bowman et al. 2016, section 3.1).
        dropout: share of the numbers set to 0 in training, in the inputs and in the outputs of the LSTM.

    Raises:
        ValueError: a share outside [0, 1).
    """

    def __init__(
        self,
        vocabulary_size: int,
        latent_dim: int,
        embedding: int = 32,
        hidden: int = 64,
        word_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not (0 <= word_dropout < 1 and 0 <= dropout < 1):
            raise ValueError(f"word_dropout is {word_dropout}, dropout is {dropout}; both must lie in [0, 1)")
        self.word_dropout, self.latent_dim = word_dropout, latent_dim
        self.embedding = nn.Embedding(vocabulary_size, embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(embedding + latent_dim, hidden, batch_first=True)
        self.first_state = nn.Linear(latent_dim, hidden, bias=False)
        self.head = nn.Linear(hidden, vocabulary_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Sentences, z: Tensor) -> Tensor:
        """Return the (N,) costs -log p(x|z) of N sentences, z (N, latent_dim), in nats, summed over words and EOS."""
        before = F.pad(x.tokens[:, :-1], (1, 0), value=BOS)  # (N, T): what has been read when word t is due
        states, _ = self._read(self._forget_words(before), z, self._start(z))  # (N, T, hidden)
        real = torch.arange(x.tokens.shape[1], device=z.device) < x.lengths.to(z.device)[:, None]  # (N, T)
        # Only real words are predicted: the head is the dearest layer, and padding is a third of all places.
        cost = F.cross_entropy(self.head(self.dropout(states[real])), x.tokens[real], reduction="none")  # (words,)
        sentence = real.nonzero()[:, 0]  # (words,) the sentence that each of them stands in
        return torch.zeros(len(z), dtype=cost.dtype, device=z.device).index_add(0, sentence, cost)

    @torch.no_grad()
    def sample(
        self, z: Tensor, length: int = 20, generator: torch.Generator | None = None, greedy: bool = False
    ) -> Tensor:
        """Write one sentence for each code: (N, latent_dim) -> (N, at most length) tokens, after EOS only PAD.

        In evaluation mode, or dropout has its say.

        Args:
            length: where to stop. generator: source of the draws, on whatever device.
            greedy: take the likeliest word in place of a draw.

        Raises:
            ValueError: length < 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1")
        state, written = self._start(z), []
        token = torch.full((len(z), 1), BOS, device=z.device)
        done = torch.zeros_like(token, dtype=torch.bool)
        for _ in range(length):
            states, state = self._read(token, z, state)  # (N, 1, hidden)
            token = self._choose(self.head(states[:, 0]), generator, greedy).masked_fill(done, PAD)  # (N, 1)
            written.append(token)
            done = done | (token == EOS)
            if done.all():
                break
        return torch.cat(written, 1)

    def _start(self, z: Tensor) -> tuple[Tensor, Tensor]:
        c = self.first_state(z)[None]  # (1, N, hidden): one layer
        return c.tanh(), c

    def _read(self, tokens: Tensor, z: Tensor, state: tuple[Tensor, Tensor]):
        """Run the LSTM over (N, T) words, z (N, n) joined to each; return (N, T, hidden) and the last state."""
        words = self.dropout(self.embedding(tokens))  # (N, T, embedding)
        return self.lstm(torch.cat([words, z[:, None].expand(-1, words.shape[1], -1)], 2), state)

    def _forget_words(self, tokens: Tensor) -> Tensor:
        if not (self.training and self.word_dropout):
            return tokens
        gone = (torch.rand(tokens.shape, device=tokens.device) < self.word_dropout) & (tokens != BOS) & (tokens != PAD)
        return tokens.masked_fill(gone, UNK)

    @staticmethod
    def _choose(logits: Tensor, generator: torch.Generator | None, greedy: bool) -> Tensor:
        """Return (N, 1) words from (N, vocabulary) logits; never the ones that stand for no word."""
        logits = logits.index_fill(1, torch.tensor([PAD, BOS, UNK], device=logits.device), float("-inf"))
        if greedy:
            return logits.argmax(1, keepdim=True)
        place = generator.device if generator else logits.device
        return torch.multinomial(logits.softmax(1).to(place), 1, generator=generator).to(logits.device)


def sentence_vae(
    vocabulary_size: int,
    latent_dim: int = 8,
    posterior: nn.Module | None = None,
    embedding: int = 32,
    hidden: int = 64,
    word_dropout: float = 0.0,
    dropout: float = 0.0,
) -> VAE:
    """Return a sentence VAE; `posterior` is what stands between encoder and bound, None for the usual Gaussian.

    The defaults are the book's small size. That of the official configuration for Yahoo and Yelp: latent_dim 32,
    embedding 512, hidden 1024, dropout 0.5.
    """
    encoder = SentenceEncoder(vocabulary_size, latent_dim, embedding, hidden)
    decoder = SentenceDecoder(vocabulary_size, latent_dim, embedding, hidden, word_dropout, dropout)
    return VAE(encoder, posterior, decoder)
