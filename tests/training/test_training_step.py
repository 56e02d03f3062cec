"""A compiled training step sets the gradients that ``loss(model(graph), targets).backward()`` sets, on any ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import structures
import torch
from allocated import peak
from ase import Atoms
from processes import run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import distcompile
from distcompile import InputError, LocalWorld, ProcessGroupWorld, TrainingError, UnsupportedOp, training_step
from training.models import Graph, Model, Targets, given, loss

EXACT = 1e-9
CRYSTAL = structures.crystal((2, 2, 2))


def compiled(model: nn.Module, example: tuple[Graph, Targets], ranks: int = 1, **options: Any) -> Any:
    """A training step on virtual ranks."""
    return training_step(model, loss, *example, world=LocalWorld(ranks), lowering="eager", **options)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that parameters have."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def stock(
    model: nn.Module, graph: Graph, targets: Targets, loss: Callable[..., Any] = loss
) -> tuple[Any, dict[str, Tensor]]:
    """What the loss returns, and the gradients, by the stock model."""
    model.zero_grad()
    returned = loss(model(graph), targets)
    (returned[0] if isinstance(returned, tuple) else returned).backward()
    found = gradients(model)
    model.zero_grad()
    return returned, found


def same(found: dict[str, Tensor], expected: dict[str, Tensor], exact: float = EXACT) -> None:
    """All gradients are equal, and no parameter has one that has none in the stock model."""
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=exact * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


STRUCTURES: dict[str, list[Atoms]] = {
    "film": [structures.film()],
    "cluster": [structures.cluster()],
    "small cell": [structures.small_cell()],
    "one atom": [Atoms("Mg", [[0.1, 0.2, 0.3]], cell=[3.0, 3.1, 3.2], pbc=True)],
    "batch": [structures.small_cell(), CRYSTAL, structures.cluster()],
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_loss_and_gradients(ranks: int) -> None:
    """Of energies, forces and matrices of edges, for structures that the step was not compiled on, and batches."""
    model = Model()
    step = compiled(model, given(CRYSTAL), ranks)
    for name, of in STRUCTURES.items():
        graph, targets = given(*of, seed=1)
        (expected, logged), wanted = stock(model, graph, targets)
        value, more = step(graph, targets)
        torch.testing.assert_close(value, expected.detach(), rtol=EXACT, atol=EXACT, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(more["largest"], logged["largest"].detach(), rtol=EXACT, atol=EXACT)
        assert not value.requires_grad and not more["energy"].requires_grad
        same(gradients(model), wanted)
        model.zero_grad()


def test_targets_of_edges_are_in_the_order_of_the_users_edges() -> None:
    """Edges in another order, with their targets."""
    model = Model()
    step = compiled(model, given(CRYSTAL, order=1), 3)
    _, expected = stock(model, *given(CRYSTAL))
    step(*given(CRYSTAL, order=2))
    same(gradients(model), expected)


def train(model: nn.Module, backward: Callable[[Graph, Targets], Any], steps: int = 20) -> Tensor:
    """All weights after some steps of an optimiser with clipped gradients, over four structures."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    batches = [given(CRYSTAL, seed=s) for s in range(2)] + [given(structures.film(), structures.small_cell(), seed=2)]
    for at in range(steps):
        optimizer.zero_grad()
        backward(*batches[at % 3])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_many_steps_end_in_the_same_weights() -> None:
    """20 steps by the stock model, and on one, two and three ranks."""
    model = Model()
    expected = train(model, lambda graph, targets: loss(model(graph), targets)[0].backward())
    for ranks in (1, 2, 3):
        model = Model()
        torch.testing.assert_close(
            train(model, compiled(model, given(CRYSTAL), ranks)), expected, rtol=EXACT, atol=EXACT
        )


def _train_here() -> Tensor:
    model = Model()
    step = training_step(model, loss, *given(CRYSTAL), world=ProcessGroupWorld(), lowering="eager")
    return train(model, step, 6)


def test_processes() -> None:
    """Two processes, each with the model and the optimiser."""
    model = Model()
    expected = train(model, lambda graph, targets: loss(model(graph), targets)[0].backward(), 6)
    for weights in run_ranks(2, _train_here):
        torch.testing.assert_close(weights, expected, rtol=EXACT, atol=EXACT)


def test_gradients_are_accumulated() -> None:
    """Two structures before a step of the optimiser, as with `backward`."""
    model = Model()
    step = compiled(model, given(CRYSTAL), 2)
    one, two = stock(model, *given(CRYSTAL))[1], stock(model, *given(structures.film()))[1]
    step(*given(CRYSTAL))
    step(*given(structures.film()))
    same(gradients(model), {name: one[name] + two[name] for name in one})


def test_parameters_that_are_not_trained() -> None:
    """Frozen ones get no gradient, nor those without a part in the loss. What is trained may change between steps."""
    model = Model()
    model.unused = nn.Parameter(torch.ones(2).double())
    step = compiled(model, given(CRYSTAL), 2)
    same_as_stock(model, step)
    model.species.requires_grad_(False)
    assert "species.weight" not in same_as_stock(model, step)
    model.species.requires_grad_(True)
    assert "species.weight" in same_as_stock(model, step)


def same_as_stock(model: nn.Module, step: Any, loss: Callable[..., Any] = loss) -> dict[str, Tensor]:
    _, expected = stock(model, *given(CRYSTAL), loss=loss)
    model.zero_grad()
    step(*given(CRYSTAL))
    same(gradients(model), expected)
    return expected


class Weighted(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Parameter(torch.tensor(0.3).double())

    def forward(self, result: dict[str, Tensor], targets: Targets) -> Tensor:
        return loss(result, targets)[0] * torch.exp(-self.noise) + self.noise


def test_a_loss_with_parameters() -> None:
    """They get gradients, too."""
    model, weighted = Model(), Weighted()
    step = training_step(model, weighted, *given(CRYSTAL), world=LocalWorld(2), lowering="eager")
    same_as_stock(model, step, weighted)
    weighted.zero_grad()
    step(*given(CRYSTAL))
    found = weighted.noise.grad.clone()
    weighted.zero_grad()
    stock(model, *given(CRYSTAL), loss=weighted)
    torch.testing.assert_close(found, weighted.noise.grad, rtol=EXACT, atol=EXACT)


class Checkpointed(Model):
    """Keeps no values of its layers for the gradient."""

    def layer(self, *args: Any) -> Tensor:
        return checkpoint(super().layer, *args, use_reentrant=False)  # type: ignore[no-any-return]


def test_checkpoints_within_the_model() -> None:
    """They change nothing: what is computed again is the compiler's choice."""
    model = Checkpointed()
    same_as_stock(model, compiled(model, given(CRYSTAL), 2))


def test_autocast() -> None:
    """Programs are compiled for the precision that is asked for."""
    model = Model().float()
    example = tuple({n: t.float() if t.is_floating_point() else t for n, t in of.items()} for of in given(CRYSTAL))
    step = training_step(model, loss, *example, world=LocalWorld(2), lowering="eager")
    for enabled, exact in ((True, 2e-2), (False, 1e-5)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            _, expected = stock(model, *example)
            step(*example)
        same(gradients(model), expected, exact)


@pytest.mark.parametrize("lowering", ["eager", "kernels"])
def test_memory_is_what_was_predicted(lowering: Any) -> None:
    """In the mode of training, with gradients enabled; less than a fifth of what the stock model takes."""
    model, example = Model(width=32), given(structures.crystal((5, 4, 4)))
    step = training_step(model, loss, *given(CRYSTAL), world=LocalWorld(1), lowering=lowering, validate=False)
    step(*example)
    predicted = step.stats(*example)[0]["peak_memory"]
    taken = peak(lambda: step(*example))
    assert 0.5 * predicted < taken < 1.2 * predicted
    assert taken < 0.2 * peak(lambda: stock(model, *example))


def test_too_little_memory() -> None:
    """It is refused before it starts."""
    with pytest.raises(InputError, match="memory=20000"):
        compiled(Model(), given(CRYSTAL), memory=20_000, validate=False)(*given(CRYSTAL))


def test_modes() -> None:
    """A model in the mode of evaluation is compiled once more; its results are detached, so its loss trains nothing."""
    model = Model()
    step = compiled(model, given(CRYSTAL))
    model.eval()
    step(*given(CRYSTAL))  # forces are no functions of weights here, but energies are
    found = gradients(model)
    same(found, stock(model, *given(CRYSTAL))[1])
    model.train()
    model.zero_grad()
    same_as_stock(model, step)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda result, targets: result["energy"].sum().item(), "it is no tensor"),
        (lambda result, targets: (result["forces"] - targets["forces"]) ** 2, "it is a tensor of shape"),
        (lambda result, targets: targets["energy"].sum(), "depends on no parameter"),
    ],
)
def test_losses_that_cannot_be_trained_by(other: Any, words: str) -> None:
    """The error says what is wrong with them."""
    with pytest.raises(TrainingError, match=words):
        training_step(Model(), other, *given(CRYSTAL))


def test_numbers_among_the_targets() -> None:
    """A Python number would be a constant of the program, and each structure would be compiled for."""
    graph, targets = given(CRYSTAL)
    with pytest.raises(TrainingError, match=r"targets\['energy'\] is a Python number.*torch.tensor"):
        training_step(Model(), loss, graph, {**targets, "energy": -3.2})
    with pytest.raises(TrainingError, match="is a Python number"):
        compiled(Model(), (graph, targets))(graph, {**targets, "energy": -3.2})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph, targets: graph["edges"].add_(100), r"graph\['edges'\] refers to number"),
        (lambda graph, targets: targets.update(forces=targets["forces"][:5]), r"targets\['forces'\] has 5 rows"),
        (
            lambda graph, targets: targets.update(forces=targets["forces"].float()),
            r"targets\['forces'\] is torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: Any, words: str) -> None:
    """By the names of the model's arguments, and as targets."""
    graph, targets = given(structures.film())
    change(graph, targets)
    with pytest.raises(InputError, match=words):
        step_on_a_crystal()(graph, targets)


@functools.cache
def step_on_a_crystal() -> Any:
    return compiled(Model(), given(CRYSTAL))


def test_what_is_no_module() -> None:
    """A function has no parameters."""
    with pytest.raises(TypeError, match="not function"):
        training_step(lambda graph: graph, loss, *given(CRYSTAL))  # type: ignore[arg-type]


def test_dropout_is_refused_in_words() -> None:
    """Ranks would draw other numbers than one does."""

    class Dropping(Model):
        def layer(self, *args: Any) -> Tensor:
            return nn.functional.dropout(super().layer(*args), 0.1, self.training)

    with pytest.raises(UnsupportedOp, match="random"):
        compiled(Dropping(), given(CRYSTAL))
    model = Dropping().eval()
    same_as_stock(model, compiled(model, given(CRYSTAL), 2))


def test_ranks_with_other_targets() -> None:
    """Targets are part of what all ranks have to be given."""
    answers = run_ranks(2, _other_targets)
    assert all(isinstance(a, distcompile.RankError) and "disagree on the graph" in str(a) for a in answers)


def _other_targets() -> None:
    graph, targets = given(CRYSTAL)
    step = training_step(Model(), loss, graph, targets, lowering="eager")
    targets["energy"] = targets["energy"] + torch.distributed.get_rank()
    step(graph, targets)


def _in_groups() -> dict[str, Tensor]:
    """Gradients that are averaged over two groups, each with a structure of its own on two ranks."""
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("structures", "rows"))
    model = Model()
    step = training_step(
        model, loss, *given(CRYSTAL), world=ProcessGroupWorld(mesh.get_group("rows")), lowering="eager"
    )
    step(*given((structures.film(), structures.small_cell())[mesh["structures"].get_local_rank()]))
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad, group=mesh.get_group("structures"))
        parameter.grad /= 2
    return gradients(model)


def test_structures_over_groups_of_ranks() -> None:
    """The mean of the gradients of both structures, on all four processes."""
    model = Model()
    one, two = (stock(model, *given(of))[1] for of in (structures.film(), structures.small_cell()))
    for found in run_ranks(4, _in_groups):
        same(found, {name: (one[name] + two[name]) / 2 for name in one})
