"""Every loss against torch's own on unreduced values, or against the formula in float64."""

import math

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def objective(task="classes", **options):
    from hpctrain.train.objective import Objective

    return Objective(task, **({"classes": 2} | options))


@pytest.fixture
def drawn():
    """Logits `(64, 5)` and labels `(64,)`, some of them far from the middle."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 5, dtype=torch.float64, generator=generator) * 3
    return logits, torch.randint(5, (64,), generator=generator)


def test_classes_are_judged_by_cross_entropy_and_right_answers():
    logits, labels = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 0.0]]), torch.tensor([1, 0, 1])
    expected = -math.log(0.75) - math.log(0.5) + math.log(1 + math.exp(5))
    assert objective().loss(logits, labels).item() == pytest.approx(expected)
    assert objective().score(logits, labels) == 2


def test_mixed_labels_weigh_each_class_and_the_likeliest_is_the_right_answer():
    logits, mixed = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = -(1.15 * math.log(0.25) + 0.85 * math.log(0.75))
    assert objective().loss(logits, mixed).item() == pytest.approx(expected)
    assert objective().score(logits, mixed) == 1
    certain = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([1, 0])
    assert objective().loss(logits, certain).item() == pytest.approx(objective().loss(logits, labels).item())


def test_numbers_are_judged_by_squares_and_absolute_errors():
    outputs, targets = torch.tensor([[1.0], [4.0], [-2.0]]), torch.tensor([1.5, 2.0, -2.0])
    number = objective("number")
    assert (number.loss(outputs, targets).item(), number.score(outputs, targets)) == (4.25, 2.5)
    assert objective("number", loss="mae").loss(outputs, targets).item() == 2.5
    assert objective("number", loss="huber").loss(outputs, targets).item() == 0.125 + 1.5


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [("auto", 2), ("cross_entropy", 2), ("tests.train.test_objective:absolute", 2),
     *((name, 1) for name in ("binary_cross_entropy", "mse", "mae", "huber", "hinge", "perceptron"))],
)  # fmt: skip
def test_two_classes_have_one_output_of_yes_or_no(loss, outputs):
    assert objective(loss=loss).outputs == outputs
    if loss != "binary_cross_entropy":
        assert objective(loss=loss, classes=7).outputs == 7
    assert objective("number", loss="mse").outputs == 1


def test_yes_or_no_by_each_loss(drawn):
    outputs, labels = drawn[0][:, :1], drawn[1] % 2
    z, y, sign = outputs[:, 0], labels.double(), 2 * labels.double() - 1
    p = 1 / (1 + (-z).exp())
    expected = {
        "binary_cross_entropy": -(y * p.log() + (1 - y) * (1 - p).log()),
        "mse": (z - y) ** 2,
        "mae": (z - y).abs(),
        "huber": torch.where((z - y).abs() < 1, (z - y) ** 2 / 2, (z - y).abs() - 0.5),
        "hinge": (1 - sign * z).clamp(min=0),
        "perceptron": (-sign * z).clamp(min=0),
    }
    for name, values in expected.items():
        made = objective(loss=name)
        assert made.loss(outputs, labels).item() == pytest.approx(values.sum().item(), rel=1e-13), name
        middle = 0.5 if name in {"mse", "mae", "huber"} else 0
        assert made.score(outputs, labels) == int(((z > middle) == (labels == 1)).sum()), name
    for name, values in {"mse": (p - y) ** 2, "mae": (p - y).abs()}.items():
        logistic = objective(loss=name, sigmoid=True)
        assert logistic.loss(outputs, labels).item() == pytest.approx(values.sum().item(), rel=1e-13)
        assert logistic.score(outputs, labels) == int(((z > 0) == (labels == 1)).sum())


def test_binary_cross_entropy_is_exact_where_the_sigmoid_is_1():
    found = objective(loss="binary_cross_entropy").loss(torch.tensor([[200.0], [-200.0]]), torch.tensor([0, 1]))
    assert found.item() == 400


def test_several_classes_by_each_loss(drawn):
    outputs, labels = drawn
    own = outputs.gather(1, labels[:, None])
    others = torch.nn.functional.one_hot(labels, 5) == 0
    truth = (~others).double()
    p = 1 / (1 + (-outputs).exp())
    expected = {
        "cross_entropy": outputs.logsumexp(1) - own[:, 0],
        "mse": (outputs - truth).square().sum(1),
        "mae": (outputs - truth).abs().sum(1),
        "hinge": ((1 - own + outputs).clamp(min=0) * others).sum(1) / 5,
        "perceptron": (outputs.masked_fill(~others, -math.inf).amax(1) - own[:, 0]).clamp(min=0),
    }
    for name, values in expected.items():
        made = objective(loss=name, classes=5)
        assert made.loss(outputs, labels).item() == pytest.approx(values.sum().item(), rel=1e-13), name
        assert made.score(outputs, labels) == int((outputs.argmax(1) == labels).sum())
    found = objective(loss="mse", classes=5, sigmoid=True).loss(outputs, labels).item()
    assert found == pytest.approx((p - truth).square().sum().item(), rel=1e-13)


def test_the_gradient_of_logistic_regression_with_squares_is_the_lectures():
    x, y = torch.tensor([[0.5, -2.0], [1.5, 0.3]], dtype=torch.float64), torch.tensor([1, 0])
    w = torch.tensor([[0.4, -0.1]], dtype=torch.float64, requires_grad=True)
    (objective(loss="mse", sigmoid=True).loss(x @ w.T, y) / 2).backward()
    p = torch.sigmoid(x @ w.detach().T)[:, 0]
    expected = (((p - y) * (p - p**2))[:, None] * x).sum(0)
    assert torch.allclose(w.grad[0], expected, rtol=1e-13, atol=0)


def test_the_gradient_of_the_perceptron_is_rosenblatts_rule_also_from_nothing():
    x, y = torch.tensor([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]]), torch.tensor([1, 0, 1])
    for weights in ([0.0, 0.0], [1.0, 1.0], [-1.0, 0.25]):
        w = torch.tensor([weights], requires_grad=True)
        objective(loss="perceptron").loss(x @ w.T, y).backward()
        signs = 2.0 * y - 1
        wrong = signs * (x @ w.detach().T)[:, 0] <= 0
        assert w.grad[0].tolist() == (-(signs * wrong)[:, None] * x).sum(0).tolist(), weights


def test_the_perceptron_of_several_classes_learns_from_nothing_too():
    outputs = torch.zeros(1, 3, requires_grad=True)
    objective(classes=3, loss="perceptron").loss(outputs, torch.tensor([1])).backward()
    assert outputs.grad.tolist() == [[0.5, -1.0, 0.5]]  # of equals each takes its share


def test_further_outputs_count_their_weight():
    made, labels = objective(classes=3), torch.tensor([0, 2])
    first, second, third = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    made.auxiliary_weight = 0.3
    heads = made.heads((first, second, third), 2, torch.float32)
    assert {head.dtype for head in heads} == {torch.float32}
    expected = sum(
        weight * torch.nn.functional.cross_entropy(head, labels, reduction="sum").item()
        for weight, head in ((1, first), (0.3, second), (0.3, third))
    )
    assert made.total(heads, labels).item() == pytest.approx(expected, rel=1e-6)
    assert made.heads(first, 2, torch.float64)[0] is first


@pytest.mark.parametrize(
    ("task", "outputs", "message"),
    [
        ("classes", [torch.zeros(2, 3)], "list for 2 samples\n  it must return logits of shape (B, 3), one for each"),
        ("classes", {}, "dict for 2 samples\n"),
        ("classes", (), "an empty tuple for 2 samples\n"),
        ("classes", (torch.zeros(2, 3), torch.zeros(2, 4)), "(2, 3) and (2, 4) for 2 samples\n"),
        ("classes", (torch.zeros(2, 3), None), "(2, 3) and NoneType for 2 samples\n"),
        ("classes", torch.zeros(1, 3), "(1, 3) for 2 samples\n"),
        ("number", torch.zeros(2), "(2,) for 2 samples\n  it must return numbers of shape (B, 1), what it predicts"),
    ],
)
def test_outputs_of_training_that_do_not_fit_are_named(task, outputs, message):
    from hpctrain.errors import JobError

    with pytest.raises(JobError) as caught:
        objective(task, classes=3).heads(outputs, 2, torch.float32)
    assert str(caught.value).startswith(f"model.name: in training the model gives {message}")


def absolute(outputs, targets):
    """Return a user's loss."""
    if outputs.ndim == 1:
        return (outputs - targets).abs()
    return (outputs[:, 0] - targets).abs()


def mean(outputs, targets):
    """Return one number for all samples, as users are used to."""
    return absolute(outputs, targets).mean()


def flat(outputs, targets):
    """Return how many are wrong, which has no gradient."""
    return (outputs.argmax(1) != targets).double()


def broken(outputs, targets):
    """Do what cannot be done."""
    return outputs @ targets.nothing


def test_the_users_own_loss_is_one_number_for_each_sample(drawn):
    from hpctrain.errors import JobError, UsageError

    here = "tests.train.test_objective"
    outputs, labels = drawn
    found = objective(loss=f"{here}:absolute", classes=5).loss(outputs, labels).item()
    assert found == pytest.approx((outputs[:, 0] - labels).abs().sum().item())
    number = objective("number", loss=f"{here}:absolute")
    assert number.loss(outputs[:, :1], labels.double()).item() == pytest.approx(found)
    with pytest.raises(JobError) as caught:
        objective(loss=f"{here}:mean", classes=5).loss(outputs, labels)
    assert str(caught.value).startswith(
        "loss: tests.train.test_objective:mean returned shape () for 64 samples\n"
        "  let it return the loss of each sample, of shape (B,), not their mean ("
    )
    flats = objective(loss=f"{here}:flat", classes=5).loss
    assert flats(outputs, labels).item() > 0  # as in an evaluation
    with pytest.raises(JobError, match=r"test_objective:flat has no gradient\n  compute it of the outputs by torch's"):
        flats(outputs.clone().requires_grad_(), labels)
    with pytest.raises(JobError, match=r"broken raised AttributeError.*\n.*test_objective.py"):
        objective(loss=f"{here}:broken", classes=5).loss(outputs, labels)
    with pytest.raises(UsageError, match="loss: 'nothing' does not exist in"):
        objective(loss=f"{here}:nothing")


def test_what_only_the_data_tell_is_refused_before_the_first_step():
    from hpctrain.config import schema
    from hpctrain.data.dataset import Dataset
    from hpctrain.errors import UsageError
    from hpctrain.train.objective import build

    def made(outputs, **options):
        config = schema.Config(name="t", model=schema.Model(name="mlp"), **options)
        return build(config, Dataset(None, None, None, (4,), outputs))

    assert made(2, loss="binary_cross_entropy").outputs == 1
    with pytest.raises(UsageError, match="of two classes, and there are 3; use cross_entropy"):
        made(3, loss="binary_cross_entropy")
    for metrics in ((), ("confusion",)):
        with pytest.raises(UsageError, match="data: there is one class, and nothing to tell apart"):
            made(1, metrics=metrics)
    with pytest.raises(UsageError, match="metrics: top5 is always 1 with 4 classes; remove it"):
        made(4, metrics=("top5",))
    with pytest.raises(UsageError, match="table of 201 x 201 numbers"):
        made(201, metrics=("confusion",))


def test_the_meter_counts_held_passes_as_it_would_count_each():
    from hpctrain.train.metrics import Meter

    number = objective("number")
    meter = Meter(number.score)
    for value in range(150):
        outputs, targets = torch.full((2, 1), float(value)), torch.zeros(2)
        meter.add(outputs, targets, number.loss(outputs, targets))
        meter.keep()
        meter.add(outputs, targets, number.loss(outputs, targets))
        meter.drop()
    assert meter.totals().tolist() == [2 * sum(v * v for v in range(150)), 2 * sum(range(150))]
    meter.reset()
    assert meter.totals().tolist() == [0, 0]


def test_a_perfect_confusion_matrix_is_told_so():
    from hpctrain.train.metrics import shown

    assert shown({"confusion": [[5, 0], [0, 4]]}) == {"confusion": "no class taken for another"}
    assert shown({"confusion": [[5, 0], [1, 4]]}) == {"confusion": "most often 1 taken for 0, 1 times"}


def test_the_report_names_the_score_and_the_metrics(tmp_path, capsys):
    import json

    from hpctrain.train.metrics import Report

    report = Report(tmp_path / "run/metrics.jsonl", steps_per_epoch=2, total_steps=4, score_name="error")
    metrics = {"r2": None, "mse": 0.25, "confusion": [[5, 1], [3, 4]]}
    report.write("validation", step=2, samples=4, score=6.0, loss=0.5, lr=0.1, seconds=2.0)
    report.write("test", step=2, samples=4, score=6.0, loss=0.5, lr=0.1, seconds=2.0, metrics=metrics)
    report.close()
    line, other = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert (line["split"], line["error"], line["samples_per_s"], "accuracy" in line) == ("validation", 1.5, 2.0, False)
    assert {key: other[key] for key in metrics} == metrics
    assert capsys.readouterr().out == (
        "validation  step 2/4  epoch 1.00  loss 0.5000  error 1.5000  lr 0.1  2 samples/s\n"
        "test        step 2/4  epoch 1.00  loss 0.5000  error 1.5000  lr 0.1  2 samples/s"
        "  r2 none  mse 0.2500  confusion most often 1 taken for 0, 3 times\n"
    )
