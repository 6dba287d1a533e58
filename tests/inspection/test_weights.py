"""What ``inspect`` says of a weight file: are its weights factors of a training, or what somebody else makes them of?"""

import pytest
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lorita_deploy.inspection.weights import look_at_weights
from lorita_deploy.train.composition import factorize


def depth(module, folder):
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    return look_at_weights(path).depth


LAYERS = {
    "wide": lambda: nn.Linear(6, 3),
    "tall": lambda: nn.Linear(3, 6),
    "square": lambda: nn.Linear(4, 4),
    "row": lambda: nn.Linear(4, 1),
    "column": lambda: nn.Linear(1, 4),
    "convolution": lambda: nn.Conv2d(3, 5, 3),
    "sequence": lambda: nn.Conv1d(3, 5, 3),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_factors_are_told_from_norms_of_weights(layer, tmp_path):
    make = LAYERS[layer]
    for wrap in (weight_norm, spectral_norm):
        assert depth(nn.Sequential(wrap(make())), tmp_path) is None
    for N in (2, 3):
        assert depth(factorize(nn.Sequential(make()), N), tmp_path) == N
        if min(make().weight.flatten(1).shape) > 1:
            assert depth(factorize(nn.Sequential(make()), N, widths={"0": 1}), tmp_path) == N
    assert depth(factorize(nn.Sequential(make(), weight_norm(nn.Linear(4, 4))), 3), tmp_path) == 3
