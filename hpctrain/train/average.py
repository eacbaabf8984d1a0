"""The exponential moving average of the weights (EMA), which often scores better than the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averages of a model's parameters: a <- decay x a + (1 - decay) x w after each step, from the first weights on.

    Buffers, such as the running averages of batch norm, are the model's own.

    Source: Polyak & Juditsky 1992; Tarvainen & Valpola 2017, "Mean teachers are better role models", section 2.

    Args:
        model: on its device, with the weights of all ranks; each rank keeps the same averages.
        decay: from 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._weights = list(model.parameters())
        self._means = [part.detach().clone() for part in self._weights]
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the weights in: one kernel for all of them."""
        self._update(self._means, [part.detach() for part in self._weights], None)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model have the averages for its weights in here: they change places, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, part in enumerate(self._weights):
            part.data, self._means[number] = self._means[number], part.data
