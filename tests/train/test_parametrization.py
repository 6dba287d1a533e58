"""Products of their own for attention heads: the function kept, exactly collapsed, and low-rank head by head."""

from __future__ import annotations

import pytest
import torch
from lorita_sample_models.vit import Attention, VisionTransformer
from torch import nn

from lorita_deploy.attention import attentions
from lorita_deploy.compress.heads import head_spectra, narrow_heads
from lorita_deploy.records import Phase, Recipe
from lorita_deploy.train.composition import collapse, factored_layers, factorize
from lorita_deploy.train.parametrization import Composition, HeadComposition
from lorita_deploy.train.structure import shapes_of, structure, structure_like

HEADS, WIDTH, INNER = 2, 8, 24


def network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(4, 8, width=HEADS * WIDTH, depth=1, heads=HEADS, inner=INNER)


def projections(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(f"encoder.0.attention.{name}") for name in "qkvo"]


@pytest.mark.parametrize("depth", [2, 3])
def test_the_function_is_kept_and_collapse_is_exact(depth: int) -> None:
    model, x = network(), torch.randn(3, 3, 8, 8)
    keys, before = list(model.state_dict()), model(x).detach()
    factorize(model, depth, per_head=True)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    for layer in projections(model):
        squares = [p for p in layer.parametrizations.weight.parameters() if p.dim() == 3]  # type: ignore[union-attr]
        assert [tuple(square.shape) for square in squares] == [(HEADS, WIDTH, WIDTH)] * (depth - 1)
    with torch.no_grad():  # off balance, as training leaves them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = model(x)
        assert torch.equal(collapse(model)(x), expected)
    assert list(model.state_dict()) == keys
    assert not factored_layers(model)


def test_a_head_is_the_product_of_its_own_factors_alone() -> None:
    model = factorize(network(), 3, per_head=True)
    q, _, _, o = projections(model)
    for layer, columns in ((q, False), (o, True)):
        wide, first, second = (p.detach() for p in layer.parametrizations.weight.parameters())  # type: ignore[union-attr]
        for h in range(HEADS):
            part = slice(h * WIDTH, (h + 1) * WIDTH)
            expected = first[h] @ second[h] @ (wide[:, part].T if columns else wide[part])
            found = layer.weight[:, part].T if columns else layer.weight[part]  # type: ignore[index]
            torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("depth", [2, 3])
def test_the_start_is_balanced_so_decay_is_the_penalty_of_each_head(depth: int) -> None:
    model = network()
    q = projections(model)[0]
    s = torch.linalg.svdvals(q.weight.detach().double().unflatten(0, (HEADS, WIDTH)))  # type: ignore[union-attr]
    factorize(model, depth, per_head=True)
    penalty = sum(float(p.detach().double().square().sum()) for p in q.parametrizations.weight.parameters())  # type: ignore[union-attr]
    assert penalty == pytest.approx(depth * float(s.pow(2 / depth).sum()), rel=1e-5)


def test_zero_heads_compute_zero_and_get_gradients() -> None:
    model = network()
    layers = projections(model)
    for layer in layers:
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    factorize(model, 3, per_head=True)
    assert all(not layer.weight.any() for layer in layers)  # type: ignore[operator, union-attr]
    o = layers[3]
    (o.weight * torch.randn(16, 16)).sum().backward()  # type: ignore[operator]
    assert float(o.parametrizations.weight.original0.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_recipes_phases_and_weights_at_rest_know_of_heads() -> None:
    recipe = Recipe(epochs=4, batch_size=8, lr=0.1, weight_decay=0, per_head=True, phases=(Phase(start=2, depth=2),))
    model = structure(network(), recipe, 1)
    before = model(torch.ones(1, 3, 8, 8)).detach()
    structure(model, recipe, 2)
    kinds = [layer.parametrizations.weight[0] for layer in projections(model)]  # type: ignore[union-attr, index]
    assert all(isinstance(kind, HeadComposition) and kind.depth == 2 for kind in kinds)
    torch.testing.assert_close(model(torch.ones(1, 3, 8, 8)), before, rtol=1e-4, atol=1e-5)
    found = structure_like(network(), shapes_of(model.state_dict()))
    found.load_state_dict(model.state_dict())
    torch.testing.assert_close(found(torch.ones(1, 3, 8, 8)), before, rtol=1e-4, atol=1e-5)


def test_only_a_recipe_that_asks_for_it_says_so() -> None:
    """Trainings begun before there was the choice go on: their identity is the recipe as it is written."""
    recipe = Recipe(epochs=1, batch_size=1, lr=1, weight_decay=0)
    assert "per_head" not in recipe.model_dump()
    assert recipe.model_copy(update={"per_head": True}).model_dump()["per_head"] is True
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


TOKENS = torch.randn(128, 6, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))


def taught(depth: int) -> tuple[nn.Module, torch.Tensor]:
    """An attention that learnt from one whose heads need two directions each, and what was to be learnt."""
    torch.manual_seed(0)
    teacher, learner = Attention(HEADS * WIDTH, HEADS), Attention(HEADS * WIDTH, HEADS)
    with torch.no_grad():
        for layer in (teacher.q, teacher.k, teacher.v):
            for head in layer.weight.view(HEADS, WIDTH, -1):
                head.copy_(torch.randn(WIDTH, 2) @ torch.randn(2, head.shape[1]) / WIDTH**0.5)
            layer.bias.zero_()
        expected = teacher(TOKENS)
    network = factorize(nn.Sequential(learner), depth, per_head=True)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    biases = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 1e-3}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(600):
        optimizer.zero_grad()
        (network(TOKENS) - expected).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network, expected


def beyond_two(network: nn.Module) -> float:
    """Of the scores' products: the share of their singular values beyond the second of each head."""
    (attention,) = attentions(network)
    s = head_spectra(network, attention).qk
    return float((s[:, 2:].sum(1) / s.sum(1)).max())


def test_heads_become_narrower_in_a_training_and_are_cut_to_what_they_need() -> None:
    (network, expected), (plain, _) = taught(3), taught(1)
    assert (
        beyond_two(collapse(network)) < beyond_two(plain) / 4 < beyond_two(nn.Sequential(Attention(HEADS * WIDTH, HEADS))) / 4
    )
    cut = narrow_heads(network, attentions(network)[0], 2, 2)
    with torch.no_grad():
        for each in (network, cut):
            assert float((each(TOKENS) - expected).square().mean()) < 0.01 * float(expected.var())


SHAPES = {
    "wide": ((4, 3, 3, 3), None),
    "tall": ((40, 2, 3, 3), None),
    "channels-last": ((4, 3, 3, 3), None),
    "tall channels-last": ((40, 2, 3, 3), None),
    "narrow": ((6, 3, 3, 3), 2),
    "tall narrow": ((9, 5, 1, 1), 2),
    "rows": ((6, 7), None),
    "columns": ((7, 6), None),
}


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("layer", SHAPES)
def test_gradients_by_hand_are_those_of_autograd(layer: str, depth: int) -> None:
    shape, width = SHAPES[layer]
    composition = (
        HeadComposition(depth, 0.1, 2, layer == "columns") if layer in ("rows", "columns") else Composition(depth, 0.1, width)
    )
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    if "channels-last" in layer:
        weight = weight.contiguous(memory_format=torch.channels_last)
    factors = [factor.add(torch.randn_like(factor)).requires_grad_() for factor in composition.right_inverse(weight)]
    gradient = torch.randn_like(composition(*factors))
    for given in (gradient, gradient.contiguous()):
        weight, P = composition._weight(*factors)
        expected = torch.autograd.grad(weight, factors, given)
        for a, b, factor in zip(composition._weight_gradients(given, P, *factors), expected, factors, strict=True):
            torch.testing.assert_close(a, b)
            assert a.stride() == factor.stride()  # what autograd takes over without a copy
    squares = factors[1:]
    if layer not in ("rows", "columns"):
        square, _ = composition._square(*squares)
        gradient = torch.randn_like(square)
        expected = torch.autograd.grad(square, squares, gradient)
        for a, b in zip(composition._square_gradients(gradient, None, *squares), expected, strict=True):
            torch.testing.assert_close(a, b)
