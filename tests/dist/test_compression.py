"""Gradients that travel in 16 bits, with DDP and with Horovod: they are rounded, and nothing else happens to them."""

import pytest

from hpctrain.config.schema import Dist

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch]

KINDS = [("ddp", "bf16", 2**-8), ("ddp", "fp16", 2**-11), ("horovod", "fp16", 2**-11)]


@pytest.fixture
def values(ranks, request):
    """Run a body on some ranks; give what each returns."""
    from tests.train.ranks import make_config

    def run(body, size, strategy, compression="none", **options):
        if strategy == "horovod":
            request.getfixturevalue("horovod")
        dist = Dist(strategy=strategy, compression=compression)
        job = ranks.start(
            make_config(dist=dist), size, run=ranks.run_dir(f"{len(ranks.jobs)}"), body=body, options=options
        )
        reports = job.wait()
        assert all("value" in report for report in reports), reports
        return [report["value"] for report in reports]

    return run


@pytest.mark.parametrize(("strategy", "compression", "unit"), KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_and_weights_are_rounded_as_the_format_rounds(values, size, strategy, compression, unit):
    reference = torch.tensor(values("steps", size, "ddp", momentum=0.0)[0])
    found = values("steps", size, strategy, compression, momentum=0.0)
    assert found == found[:1] * size
    apart = (torch.tensor(found[0]) - reference).abs().max().item()
    assert unit * 1e-4 < apart < unit


@pytest.mark.parametrize(("strategy", "compression", "unit"), KINDS)
def test_a_gradient_of_almost_the_largest_float16_does_not_overflow(values, strategy, compression, unit):
    """Each rank's is a quarter of it; multiplied by the ranks, or summed before it is divided, it would."""
    for weight in values("large", 4, strategy, compression):
        assert weight == pytest.approx(-60_000, rel=unit)


@pytest.mark.parametrize(("strategy", "compression", "unit"), KINDS)
def test_the_passes_of_a_step_are_added_before_they_are_rounded(values, strategy, compression, unit):
    """2048 and 1 are 2049, which neither format has; what is added up in it would stay 2048 a thousand times."""
    for weight in values("small", 2, strategy, compression):
        assert weight == pytest.approx(-2 * (2048 + 1000), rel=unit)
