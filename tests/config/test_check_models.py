"""What of model, loss and metrics the config alone shows to be wrong: each message whole, with its place."""

import pytest

TABLE = "{dataset: table, path: t.csv, split: {test: 0.1}, args: {target: y}}"
WORDS = "{dataset: table, path: t.csv, split: {test: 0.1}, args: {target: y, task: classification}}"
WIDE = "{dataset: synthetic, args: {shape: [3, 32, 48]}}"
COLOURS = "{dataset: cifar10, path: /d}"
TWO = "{dataset: synthetic, args: {classes: 2}}"


def config(good, *, data="{dataset: mnist}", model="{name: mlp}", more=""):
    return good.replace("{dataset: mnist}", data).replace("{name: mlp}", model) + more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "{name: mlp, args: {init_value: 0.1}}"},
            "3:39: model.args.init_value: nothing reads this with init: default; remove it, or use init: normal",
        ),
        (
            {"model": "{name: mlp, args: {init: normal, init_value: -1}}"},
            "3:53: model.args.init_value: is a standard deviation here and must be greater than 0",
        ),
        (
            {"model": "{name: mlp, args: {hidden: [], activation: tanh}}"},
            "3:51: model.args.activation: is of hidden layers, and there are none; remove it, or give hidden: [128]",
        ),
        (
            {"model": "{name: mlp, args: {hidden: [], dropout: 0.5}}"},
            "3:48: model.args.dropout: is of hidden layers, and there are none; remove it, or give hidden: [128]",
        ),
        (
            {"model": "{name: mlp, args: {dropout: 1.0}}"},
            "3:36: model.args.dropout: expected a number of at least 0 and less than 1, got 1.0",
        ),
        (
            {"model": "{name: cnn, args: {kernel: 9, padding: 0, channels: [4, 4, 4]}}"},
            "3:50: model.args.channels: 3 blocks leave nothing of 28 pixels; give at most 2 for this dataset",
        ),
        (
            {"model": "{name: cnn, args: {kernel: 29, padding: 0}}"},
            "3:20: model.args.channels: 2 blocks leave nothing of 28 pixels; give a smaller kernel, or padding",
        ),
        (
            {"model": "{name: cnn, args: {kernel: 4}}"},
            "3:35: model.args.kernel: 4 is even and has no centre; give an odd number, or padding",
        ),
        (
            {"model": "{name: cnn, args: {norm_blocks: [1]}}"},
            (
                "3:27: model.args.norm_blocks: nothing reads this with norm: none; remove it, "
                "or use norm: before or after"
            ),
        ),
        (
            {"model": "{name: cnn, args: {norm: after, norm_blocks: [3]}}"},
            "3:40: model.args.norm_blocks: there is no block 3; channels has 2",
        ),
        (
            {"model": "{name: vit-tiny}"},
            "3:1: model.args.patch: 16 does not divide 28 pixels; use one of 2, 4, 7, 14, 28",
        ),
        (
            {"model": "{name: lenet}", "data": "{dataset: digits}"},
            "3:15: model.name: lenet leaves nothing of 8 pixels; it needs at least 12, use cnn or mlp",
        ),
        (
            {"model": "{name: vit-tiny, args: {patch: 32}}", "data": WIDE},
            "3:39: model.args.patch: 32 does not divide 32 x 48 pixels; use one of 2, 4, 8, 16",
        ),
        (
            {"model": "{name: vit-tiny}", "data": "{dataset: synthetic, args: {shape: [1, 1, 1]}}"},
            "3:1: model.args.patch: 16 does not divide 1 pixels; use images of another size, or model.name: mlp",
        ),
        (
            {"model": "{name: lenet, batch_norm: sync}"},
            "3:34: model.batch_norm: lenet has no batch norm; remove it",
        ),
        (
            {"model": "{name: mlp, batch_norm: ghost}"},
            "3:32: model.batch_norm: mlp has no batch norm; remove it, or give args: {batch_norm: true}",
        ),
        (
            {"model": "{name: cnn, batch_norm: sync}"},
            "3:32: model.batch_norm: cnn has no batch norm; remove it, or give args: {norm: before}",
        ),
        (
            {"model": "{name: vit-small, args: {patch: 4}, batch_norm: sync}"},
            "3:56: model.batch_norm: vit-small has no batch norm; remove it",
        ),
        (
            {"model": "{name: 'torchvision:resnet18'}"},
            (
                "3:15: model.name: torchvision:resnet18 takes pictures of 3 channels, and the data have 1; use "
                "timm:resnet18, which takes any number"
            ),
        ),
        (
            {
                "model": "{name: 'torchvision:resnet18'}",
                "data": "{dataset: folder, path: /d, args: {channels: grey}}",
            },
            (
                "3:15: model.name: torchvision:resnet18 takes pictures of 3 channels, and the data have 1; use "
                "data.args.channels: rgb, or timm:resnet18, which takes any number"
            ),
        ),
        (
            {"model": "{name: 'timm:resnet18'}", "data": TABLE},
            "3:15: model.name: timm:resnet18 needs images, and a table has none; use mlp",
        ),
        (
            {"model": "{name: 'torchvision:resnet18'}", "data": "{dataset: points, args: {kind: xor}}"},
            "3:15: model.name: torchvision:resnet18 needs images, and points have none; use mlp",
        ),
        (
            {"model": "{name: resnet20}", "data": TABLE},
            "3:15: model.name: resnet20 needs images, and a table has none; use mlp",
        ),
        (
            {"model": "{name: mlp, weights_skip: [fc.*]}"},
            "3:20: model.weights_skip: nothing reads this without model.weights; remove it, or give the file",
        ),
        (
            {"model": "{name: 'torchvision:resnet18', args: {weights: DEFAULT}}", "data": COLOURS},
            "3:55: model.args.weights: follows from the data, or from model.weights; remove it",
        ),
        (
            {"model": "{name: 'timm:resnet18', args: {pretrained: true}}"},
            "3:51: model.args.pretrained: follows from the data, or from model.weights; remove it",
        ),
        (
            {"data": TABLE, "more": "loss: cross_entropy\n"},
            "7:7: loss: cross_entropy is of classes, and the data ask for a number; use auto, mse, mae or huber",
        ),
        (
            {"data": TABLE, "model": "{name: perceptron}"},
            "3:15: model.name: perceptron has a step and learns classes, not numbers; use linear or mlp",
        ),
        (
            {"more": "loss: binary_cross_entropy\n"},
            "7:7: loss: binary_cross_entropy is of two classes, and there are 10; use cross_entropy",
        ),
        (
            {"model": "{name: logistic}"},
            (
                "3:15: model.name: logistic is of two classes, and there are 10; use loss: mse for a sigmoid of each, "
                "or model: {name: linear}"
            ),
        ),
        (
            {"model": "{name: logistic}", "data": TWO, "more": "loss: cross_entropy\n"},
            (
                "7:7: loss: cross_entropy does not fit logistic; use auto or binary_cross_entropy or huber or mae or "
                "mse, or model: {name: linear}"
            ),
        ),
        (
            {"model": "{name: perceptron}", "data": TWO, "more": "loss: mse\n"},
            "7:7: loss: mse does not fit perceptron; use auto or perceptron, or model: {name: linear}",
        ),
        (
            {"data": "{dataset: mnist, augment: {mixup: 0.2}}", "more": "loss: hinge\n"},
            "7:7: loss: hinge needs whole classes, and data.augment.mixup mixes them; use cross_entropy",
        ),
        (
            {"data": "{dataset: mnist, augment: {label_smoothing: 0.1}}", "more": "loss: perceptron\n"},
            "7:7: loss: perceptron needs whole classes, and data.augment.label_smoothing mixes them; use cross_entropy",
        ),
        ({"more": "loss: l2\n"}, None),
        (
            {"more": "metrics: [r2]\n"},
            "7:11: metrics[0]: r2 is of numbers, and the data ask for classes; use top5 or confusion",
        ),
        (
            {"data": TABLE, "more": "metrics: [confusion]\n"},
            "7:11: metrics[0]: confusion is of classes, and the data ask for a number; use mse, mae or r2",
        ),
        ({"data": TWO, "more": "metrics: [top5]\n"}, "7:11: metrics[0]: top5 is always 1 with 2 classes; remove it"),
        ({"more": "metrics: [top5, confusion, top5]\n"}, "7:28: metrics[2]: top5 is named twice"),
        (
            {"data": "{dataset: synthetic, args: {classes: 1000}}", "more": "metrics: [confusion]\n"},
            (
                "7:11: metrics[0]: confusion would be a table of 1000 x 1000 numbers in each evaluation; "
                "at most 200 classes"
            ),
        ),
    ],
)
def test_a_rule_of_models_losses_and_metrics(problems, good, changes, message):
    found = problems(config(good, **changes))
    if message is None:
        assert found[0].startswith("run.yaml:7:7: loss: expected one of auto, cross_entropy, binary_cross_entropy, mse")
    else:
        assert found == [f"run.yaml:{message}"]


@pytest.mark.parametrize("name", ["linear", "logistic", "perceptron", "mlp"])
@pytest.mark.parametrize("value", ["true", "false"])
def test_channels_last_is_of_convolutions(problems, good, name, value):
    text = good.replace("train: {", f"train: {{channels_last: {value}, ")
    found = problems(config(text, model=f"{{name: {name}}}", data=TWO))
    assert found == [f"run.yaml:6:24: train.channels_last: {name} has no convolution of images; remove it"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "{name: mlp, batch_norm: sync, args: {batch_norm: true}}"},
        {"model": "{name: cnn, batch_norm: ghost, args: {norm: after}}"},
        {"model": "{name: resnet20, batch_norm: sync}"},
        {"model": "{name: 'mypkg.nets:net', batch_norm: sync}"},
        {"model": "{name: 'timm:resnet18', batch_norm: sync}"},
        {"model": "{name: 'torchvision:resnet18'}", "data": COLOURS},
        {"model": "{name: 'torchvision:resnet18'}", "data": "{dataset: 'mypkg.data:set'}"},
        {"model": "{name: vit-tiny, args: {patch: 16}}", "data": WIDE},
        {"model": "{name: logistic}", "data": TWO, "more": "loss: mse\n"},
        {"model": "{name: logistic}", "more": "loss: mse\n"},
        {"model": "{name: perceptron}"},
        {"model": "{name: linear}", "data": TABLE, "more": "metrics: [mse, mae, r2]\n"},
        {"model": "{name: linear}", "data": WORDS, "more": "loss: hinge\nmetrics: [confusion]\n"},
        {"data": WORDS, "more": "loss: binary_cross_entropy\nmetrics: [top5]\n"},
        {"data": "{dataset: folder, path: /d}", "model": "{name: vit-small}", "more": "metrics: [top5]\n"},
        {"more": "loss: mypkg.losses:focal\n"},
        {"model": "{name: 'timm:resnet18', args: {drop_rate: 0.1}}"},
        {"data": "{dataset: mnist, augment: {mixup: 0.2}}", "more": "loss: mse\n"},
    ],
)
def test_what_fits_passes(load, good, changes):
    assert load(config(good, **changes)).config.model is not None


def test_a_command_of_ones_own_has_no_loss(problems):
    text = "name: run\ncommand: [python, train.py]\nloss: mse\nmetrics: [top5]\n"
    assert problems(text) == [
        "run.yaml:3:7: loss: nothing reads this with a command of your own; remove it",
        "run.yaml:4:1: metrics: nothing reads this with a command of your own; remove it",
    ]
