"""The two batch norms of ours against torch's, on one rank and with ranks that are threads."""

import threading

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from hpctrain.errors import UsageError  # noqa: E402
from hpctrain.models import batch_norm  # noqa: E402


class Meeting:
    """Gathers from threads, one for each rank."""

    def __init__(self, ranks):
        self.rows, self.ranks = {}, ranks
        self.barrier = threading.Barrier(ranks)

    def gather(self, rank):
        def exchange(values, name):
            self.rows[name, rank] = values
            self.barrier.wait(10)
            found = torch.stack([self.rows[name, other] for other in range(self.ranks)])
            self.barrier.wait(10)
            return found

        return exchange


def run(norm, inputs, outer):
    """Return outputs and the gradient of the inputs."""
    inputs = inputs.clone().requires_grad_()
    outputs = norm(inputs)
    (outputs * outer).sum().backward()
    return outputs.detach(), inputs.grad


def together(make, inputs, outer, cuts, empty=()):
    """Run a norm on as many ranks as there are parts between the cuts; `empty` ones only stand in."""
    ranks = len(cuts) - 1
    alike = [make() for _ in range(ranks)]
    meeting, found, norms = Meeting(ranks), [None] * ranks, [None] * ranks

    def one(rank):
        attendance = batch_norm.Attendance()
        attendance.stand_in = rank in empty
        norms[rank] = batch_norm.SyncBatchNorm(alike[rank], "norm", meeting.gather(rank), attendance)
        part = slice(cuts[rank], cuts[rank + 1])
        weight = 0.0 if rank in empty else 1.0
        found[rank] = run(norms[rank], inputs[part], outer[part] * weight)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found, norms


def made(kind=nn.BatchNorm2d, **options):
    def make():
        torch.manual_seed(1)
        norm = kind(3, dtype=torch.float64, **options)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        return norm

    return make


@pytest.mark.parametrize(
    "make",
    [made(), made(affine=False), made(momentum=None), made(track_running_stats=False), made(eps=0.1, momentum=0.7)],
    ids=["plain", "no weights", "cumulative", "no averages", "settings"],
)
@pytest.mark.parametrize(("cuts", "empty"), [((0, 4, 8), ()), ((0, 1, 8), ()), ((0, 3, 4, 8, 9), (3,))])
def test_all_ranks_together_are_torchs_batch_norm_of_all_samples(make, cuts, empty):
    torch.manual_seed(0)
    inputs, outer = torch.randn(9, 3, 4, 5, dtype=torch.float64) * 3 + 50, torch.randn(9, 3, 4, 5, dtype=torch.float64)
    whole = make()
    outputs, gradient = run(whole, inputs[:8], outer[:8])
    found, norms = together(make, inputs, outer, cuts, empty)
    kept = [part for rank, part in enumerate(found) if rank not in empty]
    assert torch.cat([part[0] for part in kept]).allclose(outputs, rtol=0, atol=1e-11)
    assert torch.cat([part[1] for part in kept]).allclose(gradient, rtol=0, atol=1e-11)
    for rank in empty:
        assert found[rank][0].isfinite().all()
        assert not found[rank][1].any()
    for name, value in whole.state_dict().items():
        for norm in norms:
            assert norm.state_dict()[name].allclose(value, rtol=1e-12)
    if whole.affine:
        for name in ("weight", "bias"):
            assert sum(getattr(norm, name).grad for norm in norms).allclose(
                getattr(whole, name).grad, rtol=0, atol=1e-10
            )


def test_a_pass_in_which_no_rank_has_samples_changes_nothing():
    found, norms = together(made(), torch.ones(2, 3, 4, 4).double(), torch.ones(2, 3, 4, 4).double(), (0, 1, 2), (0, 1))
    assert all(part.isfinite().all() for rank in found for part in rank)
    fresh = made()().state_dict()
    assert all(norm.state_dict()[name].equal(value) for norm in norms for name, value in fresh.items())


def test_its_gradient_is_the_derivative_of_what_it_computes():
    norm = batch_norm.SyncBatchNorm(made()(), "norm", lambda values, _: values[None], batch_norm.Attendance())
    inputs = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: norm(values) ** 2, (inputs,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_layout_of_activations_stay(dtype, layout):
    plain = nn.BatchNorm2d(3)
    norm = batch_norm.SyncBatchNorm(plain, "norm", lambda values, _: values[None], batch_norm.Attendance())
    inputs = torch.randn(4, 3, 6, 6).to(dtype, memory_format=layout).requires_grad_()
    outputs = norm(inputs)
    outputs.sum().backward()
    for part in (outputs, inputs.grad):
        assert part.dtype is dtype
        assert part.is_contiguous(memory_format=layout)
    assert outputs.float().allclose(plain(inputs).float(), atol=0.05 if dtype is torch.bfloat16 else 1e-5)


def test_groups_are_torchs_batch_norm_of_each_and_a_single_rest_joins():
    torch.manual_seed(0)
    inputs = torch.randn(13, 3, 2, 2, dtype=torch.float64)
    ghost, plain = batch_norm.GhostBatchNorm(made()(), 4), made()()
    expected = torch.cat([plain(inputs[0:4]), plain(inputs[4:8]), plain(inputs[8:13])])
    assert ghost(inputs).equal(expected)
    assert all(ghost.state_dict()[name].equal(value) for name, value in plain.state_dict().items())
    assert ghost.eval()(inputs).equal(plain.eval()(inputs))


def test_norms_are_replaced_wherever_they_are_and_keep_names_and_tensors():
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.BatchNorm2d(2)}))
    before = {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()}
    names = []
    model = batch_norm.replace(model, lambda old, name: names.append(name) or batch_norm.GhostBatchNorm(old, 2))
    assert {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()} == before
    assert names == ["1", "2.b"]
    assert model[1] is model[2]["a"][0]
    assert isinstance(
        batch_norm.replace(shared, lambda old, _: batch_norm.GhostBatchNorm(old, 2)), batch_norm.GhostBatchNorm
    )


def test_a_batch_norm_that_does_more_is_not_replaced():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, inputs):
            return super().forward(inputs).relu()

    model = nn.Sequential(nn.Conv2d(1, 2, 3), WithActivation(2))
    with pytest.raises(UsageError, match=r"batch norms of the class .*WithActivation, which do more than torch's"):
        batch_norm.replace(model, lambda old, _: batch_norm.GhostBatchNorm(old, 2))
    assert type(model[1]) is WithActivation
