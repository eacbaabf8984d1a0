import math

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def objective(task):
    from hpctrain.train.objective import OBJECTIVES

    return OBJECTIVES[task]


def test_classes_are_judged_by_cross_entropy_and_right_answers():
    logits, labels = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 0.0]]), torch.tensor([1, 0, 1])
    expected = -math.log(0.75) - math.log(0.5) + math.log(1 + math.exp(5))
    assert objective("classes").loss(logits, labels).item() == pytest.approx(expected)
    assert objective("classes").score(logits, labels) == 2


def test_mixed_labels_weigh_each_class_and_the_likeliest_is_the_right_answer():
    logits, mixed = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = -(1.15 * math.log(0.25) + 0.85 * math.log(0.75))
    assert objective("classes").loss(logits, mixed).item() == pytest.approx(expected)
    assert objective("classes").score(logits, mixed) == 1
    certain = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([1, 0])
    assert objective("classes").loss(logits, certain).item() == pytest.approx(
        objective("classes").loss(logits, labels).item()
    )


def test_numbers_are_judged_by_squares_and_absolute_errors():
    outputs, targets = torch.tensor([[1.0], [4.0], [-2.0]]), torch.tensor([1.5, 2.0, -2.0])
    assert objective("number").loss(outputs, targets).item() == 4.25
    assert objective("number").score(outputs, targets) == 2.5


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


def test_the_report_names_the_score(tmp_path, capsys):
    import json

    from hpctrain.train.metrics import Report

    report = Report(tmp_path / "run/metrics.jsonl", steps_per_epoch=2, total_steps=4, score_name="error")
    report.write("validation", step=2, samples=4, score=6.0, loss=0.5, lr=0.1, seconds=2.0)
    report.close()
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert (line["split"], line["error"], line["samples_per_s"], "accuracy" in line) == ("validation", 1.5, 2.0, False)
    assert capsys.readouterr().out == (
        "validation  step 2/4  epoch 1.00  loss 0.5000  error 1.5000  lr 0.1  2 samples/s\n"
    )
