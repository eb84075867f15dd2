import pytest
import torch

from captum_fam.models import Conv4Net


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_count_is_that_of_the_published_network():
    # Weights and biases of the convolutions, scale and shift of four batch norms.
    assert parameters(Conv4Net()) == (27 * 64 + 64) + 3 * (576 * 64 + 64) + 4 * 2 * 64 == 113_088


@pytest.mark.parametrize(("size", "map_size"), [((84, 84), (5, 5)), ((50, 99), (3, 6))])
def test_features_have_the_documented_size_and_their_mean_is_the_embedding(size, map_size):
    network = Conv4Net().eval()
    x = torch.rand(2, 3, *size)
    features = network.features(x)
    assert features.shape == (2, 64, *map_size)
    torch.testing.assert_close(network(x), features.mean((2, 3)))


def test_an_embedding_does_not_depend_on_its_batch_in_eval_mode():
    network = Conv4Net().eval()
    x = torch.rand(3, 3, 84, 84)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_a_hook_before_the_activation_still_sees_negative_values():
    network = Conv4Net().eval()
    seen = []
    norm = network.features[0][1]
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(network.features[0][2](seen[0]).min(), 0.1 * seen[0].min())
