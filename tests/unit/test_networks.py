"""Networks: shapes in, shapes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vaelab.networks import LeNet, MLPDecoder, MLPEncoder, mlp, one_hot


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4, 3)])
def test_an_mlp_has_a_relu_after_every_layer_but_the_last(hidden):
    net = mlp(7, hidden, 2)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == list(zip((7, *hidden), (*hidden, 2)))
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU] * len(hidden) + [nn.Linear]
    assert net(torch.zeros(3, 4, 7)).shape == (3, 4, 2)


def test_an_mlp_can_put_out_negative_numbers():
    net, x = mlp(3, (8,), 4), torch.randn(50, 3)
    assert (net(x) < 0).any() and (net(x) > 0).any()


def test_one_hot_marks_the_label():
    indicators = one_hot(torch.tensor([2, 0]), 3)
    assert indicators.tolist() == [[0, 0, 1], [1, 0, 0]] and indicators.dtype == torch.float32
    assert one_hot(torch.empty(0, dtype=torch.int64), 3).shape == (0, 3)


@pytest.mark.parametrize("labels, span", [([0, 3], r"\[0, 3\]"), ([-1, 2], r"\[-1, 2\]")])
def test_one_hot_refuses_labels_outside_their_range(labels, span):
    with pytest.raises(ValueError, match=rf"labels span {span}; they must lie in \[0, 3\)"):
        one_hot(torch.tensor(labels), 3)


def test_the_encoder_gives_mean_and_log_variance_of_every_coordinate():
    encoder = MLPEncoder(size=4, num_classes=3, hidden=(6,), latent_dim=2)
    x, y = torch.rand(5, 1, 4, 4), one_hot(torch.tensor([0, 1, 2, 0, 1]), 3)
    mu, logvar = encoder(x, y)
    assert mu.shape == logvar.shape == (5, 2)
    assert not mu.equal(logvar)


def test_the_decoder_gives_a_logit_for_every_pixel():
    decoder = MLPDecoder(size=4, num_classes=3, hidden=(6,), latent_dim=2)
    assert decoder(torch.randn(5, 2), one_hot(torch.tensor([0, 1, 2, 0, 1]), 3)).shape == (5, 1, 4, 4)
    assert (decoder.size, decoder.num_classes, decoder.latent_dim) == (4, 3, 2)


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_both_inputs_matter(network):
    y = torch.eye(3)
    if network == "encoder":
        net, first, other = MLPEncoder(4, 3, (6,), 2), torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
        outputs = [torch.cat(net(first, y), 1), torch.cat(net(other, y), 1)]
    else:
        net, first, other = MLPDecoder(4, 3, (6,), 2), torch.zeros(3, 2), torch.ones(3, 2)
        outputs = [net(first, y), net(other, y)]
    assert not outputs[0].allclose(outputs[1])  # x or z matters
    assert not outputs[0][0].allclose(outputs[0][1])  # y matters


@pytest.mark.parametrize("num_classes", [10, 3])
def test_lenet_classifies_by_its_64_features(num_classes):
    net, x = LeNet(num_classes), torch.rand(2, 1, 28, 28)
    features = net.trunk(x)
    assert features.shape == (2, 64) and net(x).shape == (2, num_classes)
    assert net(x).equal(net.head(features))
