"""The VAE of three parts on a toy whose likelihood is known, and the sentence VAE against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vaelab import posteriors
from vaelab.divergences import gaussian_kl
from vaelab.metrics import importance_weighted_bound
from vaelab.models import sentence_vae as sentences
from vaelab.models import vae
from vaelab.text import BOS, EOS, PAD, UNK, Sentences


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# The VAE, on a model whose log p(x) is known: z ~ N(0, I), x ~ N(A z + b, s^2 I)

PIXELS, LATENT, NOISE = 5, 3, 0.7
A = torch.randn(PIXELS, LATENT, dtype=torch.float64, generator=seeded(0))
B = torch.randn(PIXELS, dtype=torch.float64, generator=seeded(1))


class LinearDecoder(nn.Module):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        mean = z @ A.T + B
        return -vae.log_normal(x, mean, torch.full_like(mean, 2 * math.log(NOISE))).sum(1)


class LinearEncoder(nn.Module):
    """The exact posterior's mean, moved by `off`; for variances, the inverse of its precisions, raised by `off`."""

    def __init__(self, off: float):
        super().__init__()
        self.precision = torch.eye(LATENT, dtype=torch.float64) + A.T @ A / NOISE**2
        self.off = off

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = (x - B) @ A / NOISE**2 @ self.precision.inverse()
        return mu + 0.3 * self.off, -self.precision.diagonal().log().expand_as(mu) + self.off


def toy(off: float = 0.8, posterior: nn.Module | None = None) -> vae.VAE:
    return vae.VAE(LinearEncoder(off), posterior, LinearDecoder())


def many_weights(model: vae.VAE, x: Tensor, draws: int) -> Tensor:
    """(draws, N) log weights, a thousand copies of every x at a time."""
    copies = x.repeat_interleave(1000, 0)
    return model.log_weights(copies, draws // 1000, seeded(0)).view(-1, len(x), 1000).transpose(1, 2).flatten(0, 1)


def some_x(count: int = 4) -> Tensor:
    return 1.5 * torch.randn(count, PIXELS, dtype=torch.float64, generator=seeded(2))


def log_p(x: Tensor) -> Tensor:
    covariance = A @ A.T + NOISE**2 * torch.eye(PIXELS, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(B, covariance).log_prob(x)


def exact_elbo(model: vae.VAE, x: Tensor) -> Tensor:
    """E_q[log p(x|z)] - KL in closed form: the squared error has the mean's, and the trace of A diag(s^2) A^T."""
    mu, logvar = model.encode(x)
    spread = (A**2 @ logvar.exp().T).sum(0) / (2 * NOISE**2)
    return -model.decoder(x, mu) - spread - gaussian_kl(mu, logvar).sum(1)


def test_log_normal_is_the_log_density():
    z, mu, logvar = torch.randn(3, 7, 2, dtype=torch.float64, generator=seeded(0))
    expected = torch.distributions.Normal(mu, (0.5 * logvar).exp()).log_prob(z)
    same(vae.log_normal(z, mu, logvar), expected)


def test_the_bound_has_the_decoders_cost_at_a_draw_and_the_kl_of_every_coordinate():
    model, x = toy(), some_x()
    bound = model(x, seeded(3))
    mu, logvar = model.encode(x)
    assert isinstance(bound, vae.Bound) and isinstance(model.encode(x), posteriors.Gaussian)
    same(bound.nll, model.decoder(x, posteriors.reparametrise(mu, logvar, seeded(3))))
    same(bound.kl, gaussian_kl(mu, logvar))
    same(bound.elbo, -bound.nll - bound.kl[:, 0] - bound.kl[:, 1] - bound.kl[:, 2])
    assert not bound.nll.equal(model(x, seeded(4)).nll)


def test_what_stands_between_encoder_and_bound_can_be_exchanged():
    x, posterior = some_x(), posteriors.BatchNormPosterior(LATENT, gamma=0.6).double()
    model = toy(posterior=posterior)
    assert isinstance(toy().posterior, posteriors.GaussianPosterior) and model.posterior is posterior
    same(model(x).kl, gaussian_kl(*posterior(*model.encoder(x))))
    same(model.encode(x).mu.var(0, correction=0), torch.full((LATENT,), 0.36, dtype=torch.float64), 1e-6)


def test_one_draws_log_weights_estimate_the_elbo():
    model, x, draws = toy(), some_x(), 100_000
    assert model.log_weights(x, 3).shape == (3, len(x))
    weights = many_weights(model, x, draws)
    assert weights.shape == (draws, len(x)) and weights.dtype == torch.float64
    elbo = exact_elbo(model, x)
    error = weights.std(0) / math.sqrt(draws)
    assert ((weights.mean(0) - elbo).abs() < 4.5 * error).all() and (error < 0.05).all()
    assert (elbo < log_p(x) - 0.05).all()


def test_many_draws_reach_log_p():
    model, x = toy(), some_x()
    weights = many_weights(model, x, 200_000)
    many = importance_weighted_bound(weights)
    assert (many - log_p(x)).abs().max() < 0.02
    few = torch.stack([importance_weighted_bound(chunk) for chunk in weights.split(10)]).mean(0)
    assert (exact_elbo(model, x) < few).all() and (few < log_p(x) - 0.005).all()


def test_with_the_exact_posterior_every_weight_is_log_p(monkeypatch):
    columns = torch.linalg.qr(A).Q * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)  # posterior without covariance
    monkeypatch.setitem(globals(), "A", columns)
    x = some_x()
    weights = toy(off=0.0).log_weights(x, 20, seeded(0))
    same(weights, log_p(x).expand(20, -1), 1e-10)


def test_log_weights_take_no_gradient_and_want_a_draw():
    model = toy(posterior=posteriors.BatchNormPosterior(LATENT, gamma=0.6).double()).eval()
    assert not model.log_weights(some_x(), 2).requires_grad
    for draws in (0, -1):
        with pytest.raises(ValueError, match=f"draws is {draws}; it must be at least 1"):
            model.log_weights(some_x(), draws)


# Sentences

WORDS, CODE = 9, 3
LENGTHS = (5, 2, 7, 4)


def corpus(lengths=LENGTHS, seed: int = 0) -> Sentences:
    """Random sentences, widest of all as wide as the tensor; the last token of each is EOS."""
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(tokens, lengths):
        row[: length - 1] = torch.randint(UNK + 1, WORDS, (length - 1,), generator=seeded(seed + length))
        row[length - 1] = EOS
    return Sentences(tokens, torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.int64))


def wider(x: Sentences, by: int = 3, value: int = PAD) -> Sentences:
    return Sentences(nn.functional.pad(x.tokens, (0, by), value=value), x.lengths, x.labels)


def encoder() -> sentences.SentenceEncoder:
    torch.manual_seed(0)
    return sentences.SentenceEncoder(WORDS, CODE, embedding=4, hidden=6).double()


def decoder(words: int = WORDS, **dropouts: float) -> sentences.SentenceDecoder:
    torch.manual_seed(1)
    model = sentences.SentenceDecoder(words, CODE, embedding=4, hidden=6, **dropouts).double()
    with torch.no_grad():
        for parameter in (model.head.weight, model.first_state.weight, *model.lstm.parameters()):
            parameter *= 3  # far from uniform
    return model


def codes(count: int = len(LENGTHS), seed: int = 5) -> Tensor:
    return torch.randn(count, CODE, dtype=torch.float64, generator=seeded(seed))


def plain_cost(model: sentences.SentenceDecoder, words: list[int], z: Tensor) -> Tensor:
    """-log p of a row of words, gate by gate and word by word."""
    w_in, w_state, b_in, b_state = model.lstm.parameters()
    c = model.first_state.weight @ z
    h, cost = c.tanh(), z.new_zeros(())
    for before, word in zip([BOS, *words], words):
        read = torch.cat([model.embedding.weight[before], z])
        i, f, g, o = (w_in @ read + b_in + w_state @ h + b_state).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        cost = cost - (model.head.weight @ h + model.head.bias).log_softmax(0)[word]
    return cost


def as_sentences(rows: list[tuple[int, ...]]) -> Sentences:
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
    return Sentences(tokens, torch.tensor([len(row) for row in rows]), torch.zeros(len(rows), dtype=torch.int64))


# Reading


def test_the_code_of_a_sentence_depends_neither_on_padding_nor_on_its_neighbours():
    model, x = encoder(), corpus()
    whole = model(x)
    assert all(part.shape == (len(x), CODE) for part in whole)
    assert not whole[0].equal(whole[1])
    for part, wide, garbage in zip(whole, model(wider(x)), model(wider(x, value=WORDS - 1))):
        same(wide, part)
        same(garbage, part)
    for i, length in enumerate(LENGTHS):
        for part, alone in zip(whole, model(x[[i]])):
            assert x[[i]].tokens.shape == (1, length)
            same(alone[0], part[i])


def test_it_is_the_last_state_of_a_packed_run():
    model, x = encoder(), corpus()
    packed = pack_padded_sequence(model.embedding(x.tokens), x.lengths, batch_first=True, enforce_sorted=False)
    _, (h, _) = model.lstm(packed)
    same(torch.cat(model(x), 1), model.head(h[0]))


def test_every_word_of_a_sentence_counts_for_its_code():
    model, x = encoder(), corpus()
    mu, spread = model(x)
    for part in (mu, spread):
        for i, length in enumerate(LENGTHS):
            for t in range(length - 1):
                other = x.tokens.clone()
                other[i, t] = UNK
                changed = model(Sentences(other, x.lengths, x.labels))
                assert not torch.cat(changed, 1)[i].equal(torch.cat((mu, spread), 1)[i])
        model.zero_grad()
        part.sum().backward(retain_graph=True)
        gradient = model.embedding.weight.grad
        assert gradient[PAD].eq(0).all() and gradient[x.tokens.unique()[1:]].ne(0).all()


# The cost of a sentence


def test_the_cost_is_that_of_a_plain_loop_over_words():
    model, x, z = decoder(), corpus(), codes()
    cost = model(x, z)
    expected = [plain_cost(model, x.tokens[i, :length].tolist(), z[i]) for i, length in enumerate(LENGTHS)]
    same(cost, torch.stack(expected))
    same(model(x[[2, 0]], z[[2, 0]]), cost[[2, 0]])


def test_padding_costs_nothing_and_has_no_gradient():
    model, x, z = decoder(), corpus(), codes()
    cost = model(x, z)
    same(model(wider(x), z), cost)
    same(model(wider(x, value=WORDS - 1), z), cost)
    cost.sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient[PAD].eq(0).all() and gradient[BOS].ne(0).all()
    assert gradient[EOS].eq(0).all()  # read only where padding is due
    assert model.embedding.weight[PAD].eq(0).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_all_sentences_together_have_probability_one(length):
    words = 6  # the four that are no words are allowed too: the softmax knows no difference
    model, inner = decoder(words), [word for word in range(words) if word != EOS]
    ending = [(*start, EOS) for t in range(length) for start in itertools.product(inner, repeat=t)]
    unfinished = list(itertools.product(inner, repeat=length))
    x = as_sentences(ending + unfinished)
    probability = (-model(x, codes(1).expand(len(x), -1))).exp()
    same(probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert 1e-3 < probability[: len(ending)].sum() < 0.999


def test_the_code_reaches_every_step():
    model, x = decoder(), corpus((6,))
    with torch.no_grad():
        model.lstm.weight_hh_l0.zero_()  # no memory in h,
        model.lstm.bias_hh_l0[6:12] = -1e3  # nor in c: what a step knows of z, it has been told at that step
    z = codes(1).requires_grad_()
    costs = [model(Sentences(x.tokens[:, :t], torch.tensor([t]), x.labels), z).sum() for t in range(1, 7)]
    for word in (costs[0], *(after - before for before, after in itertools.pairwise(costs))):
        (gradient,) = torch.autograd.grad(word, z, retain_graph=True)
        assert gradient.abs().min() > 1e-6


def test_the_code_sets_the_first_state():
    model, x, z = decoder(), corpus((6,)), codes(1).requires_grad_()
    with torch.no_grad():
        model.lstm.weight_ih_l0[:, 4:] = 0  # z is at no step: what is left is the first state
    (gradient,) = torch.autograd.grad(model(x, z).sum(), z)
    assert gradient.abs().min() > 1e-6


# Dropout


def test_word_dropout_reads_unk_in_place_of_about_the_share_asked_for():
    model = decoder(word_dropout=0.3)
    tokens = torch.randint(UNK + 1, WORDS, (100, 200), generator=seeded(0))
    tokens[:, 0], tokens[:, 150:] = BOS, PAD
    torch.manual_seed(0)
    read = model._forget_words(tokens)
    changed = read != tokens
    assert not changed[:, 0].any() and not changed[:, 150:].any()
    assert (read[changed] == UNK).all()
    share = changed[:, 1:150].double().mean()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.21 / (100 * 149))
    assert model.eval()._forget_words(tokens).equal(tokens)


def test_word_dropout_changes_what_is_read_and_not_what_is_asked():
    model, x, z = decoder(word_dropout=1 - 1e-9), corpus(), codes()
    torch.manual_seed(0)
    cost = model(x, z)
    for i, length in enumerate(LENGTHS):
        words = x.tokens[i, :length].tolist()
        unread = model.embedding.weight.detach().clone()
        forgetful = decoder()
        with torch.no_grad():
            forgetful.embedding.weight[EOS:] = unread[UNK]  # every word looks like UNK
        same(cost[i], plain_cost(forgetful, words, z[i]))


@pytest.mark.parametrize("dropouts", [{"word_dropout": 0.5}, {"dropout": 0.5}])
def test_nothing_is_dropped_in_evaluation(dropouts):
    model, x, z = decoder(**dropouts), corpus(), codes()
    assert not model(x, z).equal(model(x, z))
    same(model.eval()(x, z), decoder()(x, z))
    assert decoder()(x, z).equal(decoder()(x, z))


def test_dropout_acts_on_what_the_lstm_reads_and_on_what_it_says():
    model, seen = decoder(dropout=0.5), {}
    for name in ("lstm", "head"):
        getattr(model, name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    x, z = corpus((40,) * 50), codes(50)
    model(x, z)
    words, said = seen["lstm"][..., :4], seen["head"]
    for part in (words, said):
        assert 0.45 < part.eq(0).double().mean() < 0.55
    same(seen["lstm"][..., 4:], z[:, None].expand(-1, 40, -1))  # the code is never dropped


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("name", ["word_dropout", "dropout"])
def test_a_share_lies_in_0_1(name, share):
    with pytest.raises(ValueError, match=rf"{name} is {share}.*must lie in \[0, 1\)"):
        decoder(**{name: share})


# Writing


def test_the_likeliest_sentence_is_always_the_same_and_takes_the_likeliest_words():
    model, z = decoder(), codes(20)
    written = model.sample(z, 8, greedy=True)
    assert written.equal(model.sample(z, 8, greedy=True)) and written.equal(model.sample(z, 8, seeded(1), greedy=True))
    for row, code in zip(written.tolist(), z):
        words = row[: row.index(EOS) + 1] if EOS in row else row
        for t in range(len(words)):
            costs = {w: plain_cost(model, [*words[:t], w], code) for w in (EOS, *range(UNK + 1, WORDS))}
            assert words[t] == min(costs, key=costs.get)


@pytest.mark.parametrize("greedy", [False, True])
def test_after_the_end_there_is_only_padding_and_no_word_is_a_special_one(greedy):
    model = decoder()
    with torch.no_grad():
        model.head.bias[[PAD, BOS, UNK]] += 20  # what the model would say if it were let
        model.head.bias[EOS] += 1
    written = model.sample(codes(300), 10, seeded(0), greedy=greedy)
    assert written.shape == (300, 10) and (written != BOS).all() and (written != UNK).all()
    ended = (written == EOS).long().cumsum(1) - (written == EOS).long() > 0  # strictly behind the first EOS
    assert ended.equal(written == PAD) and ended.any() and not ended.all(1).any()
    assert ((written == EOS).sum(1) <= 1).all()


def test_writing_stops_when_all_sentences_have_ended():
    model = decoder()
    with torch.no_grad():
        model.head.bias[EOS] += 1e3
    assert model.sample(codes(7), 10).equal(torch.full((7, 1), EOS))
    with torch.no_grad():
        model.head.bias[EOS] -= 1e4
    written = model.sample(codes(7), 10)
    assert written.shape == (7, 10) and (written > UNK).all()


def test_how_often_a_sentence_is_written_follows_the_model():
    words, draws, length = 6, 200_000, 2
    model = decoder(words)
    with torch.no_grad():
        model.head.bias[[PAD, BOS, UNK]] = -1e3  # never said, so that sampling leaves nothing out
    z = codes(1)
    rows = [(EOS,), *itertools.product((4, 5), (EOS, 4, 5))]
    x = as_sentences(rows)
    probability = (-model(x, z.expand(len(x), -1))).exp().detach()
    same(probability.sum(), torch.tensor(1.0, dtype=torch.float64))
    written = model.sample(z.expand(draws, -1), length, seeded(0))
    for row, p in zip(x.tokens, probability):
        share = (written == row).all(1).double().mean()
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-12
    assert ((probability > 0.02) & (probability < 0.9)).sum() >= 3


def test_a_seeded_generator_repeats_and_is_the_only_source():
    model, z = decoder(), codes(30)
    state = torch.get_rng_state()
    assert model.sample(z, 8, seeded(1)).equal(model.sample(z, 8, seeded(1)))
    assert torch.get_rng_state().equal(state)
    one, two = model.sample(z, 8, seeded(1)), model.sample(z, 8, seeded(2))
    assert one.shape != two.shape or not one.equal(two)
    assert not model.sample(z, 8).requires_grad


@pytest.mark.parametrize("length", [0, -1])
def test_a_sentence_has_a_place_at_least(length):
    with pytest.raises(ValueError, match=f"length is {length}; it must be at least 1"):
        decoder().sample(codes(), length)


# Together


def test_a_sentence_vae_is_made_of_these_parts():
    posterior = posteriors.BatchNormPosterior(CODE, gamma=0.6)
    model = sentences.sentence_vae(WORDS, CODE, posterior, embedding=4, hidden=6, word_dropout=0.25, dropout=0.5)
    assert isinstance(model, vae.VAE) and isinstance(model.encoder, sentences.SentenceEncoder)
    assert model.posterior is posterior and isinstance(model.decoder, sentences.SentenceDecoder)
    assert model.decoder.word_dropout == 0.25 and model.decoder.dropout.p == 0.5
    assert model.decoder.latent_dim == CODE and model.encoder.head.out_features == 2 * CODE
    book = sentences.sentence_vae(1000)
    assert isinstance(book.posterior, posteriors.GaussianPosterior) and book.decoder.latent_dim == 8
    assert book.encoder.embedding.weight.shape == (1000, 32) and book.encoder.lstm.hidden_size == 64
    assert book.decoder.embedding.weight is not book.encoder.embedding.weight


@pytest.mark.parametrize("version", [None, {"gamma": 0.6}, {"tau": 0.5}])
def test_every_parameter_learns(version):
    torch.manual_seed(0)
    posterior = version and posteriors.BatchNormPosterior(CODE, **version)
    model = sentences.sentence_vae(WORDS, CODE, posterior, embedding=4, hidden=6)
    x = corpus((5, 2, 7, 4, 3, 6))
    bound = model(x, seeded(0))
    assert bound.nll.shape == (6,) and bound.kl.shape == (6, CODE)
    (-bound.elbo.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    if version:
        assert bound.kl.sum(1).mean() >= model.posterior.floor(observed=True) - 1e-5


def test_training_brings_the_cost_down_to_the_entropy_of_a_language_without_choice():
    torch.manual_seed(0)
    model = sentences.sentence_vae(WORDS, CODE, embedding=8, hidden=16)
    x = as_sentences([(4, 5, 6, EOS), (7, 8, EOS)] * 8)  # one bit, log 2 nats, and nothing else to tell
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = -model(x).elbo.mean()
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(math.log(2), abs=0.05)
