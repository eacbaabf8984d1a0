"""The plan as lines for people."""

from hpctrain.config.optim import asked, spares
from hpctrain.config.schema import Config
from hpctrain.plan import Plan

_BY_TEST = (
    "checkpoint.keep_best chooses by the test set, for there is no validation set, and its score is too good then; "
    "data.split.validation=0.1 sets one apart"
)


def describe(plan: Plan, config: Config) -> str:
    """Return the plan as lines for people: what was asked and what follows."""
    nodes = f"{plan.nodes} node{'s' * (plan.nodes > 1)}"
    started = "" if plan.launcher == "local" else f", by {plan.launcher}"
    how = f"{plan.device}, {plan.strategy} over {plan.backend}{started}"
    rows = [("ranks", f"{plan.ranks} = {nodes} x {plan.ranks_per_node}, {how}")]
    if config.command is not None:
        rows.append(("command", " ".join(config.command)))
    else:
        rows += _training_rows(plan, config)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _steps_text(plan: Plan, config: Config) -> str:
    stop_early = None if config.train is None else config.train.stop_early
    most = "" if stop_early is None else "at most "
    text = f"{plan.steps_per_epoch} per epoch, {most}{plan.total_steps} in all, {plan.warmup_steps} of warm-up"
    if stop_early is not None:
        text += f"; ends early after {stop_early.patience} evaluations without a lower validation loss"
    short = plan.warmup_steps is not None and plan.total_steps is not None and plan.warmup_steps > plan.total_steps
    return f"{text}: the run ends before it reaches its rate" if short else text


def _optimizer_rows(plan: Plan, config: Config) -> list[tuple[str, str]]:
    """What else of the optimizer the batch scales, and what its weight decay spares."""
    optim, rows = config.optim, []
    if optim is None or config.model is None:
        raise AssertionError("a config that trains has these sections")
    before = asked(optim)
    used = {"betas": plan.betas_used, "alpha": plan.alpha_used, "eps": plan.eps_used}
    changes = [
        f"{name} {_shown(getattr(before, name))} asked -> {_shown(value)} used"
        for name, value in used.items()
        if value is not None
    ]
    if changes:
        rows.append(("optimizer", f"{optim.name}, {', '.join(changes)}"))
    if optim.weight_decay and spares(optim, config.model.name):
        rows.append(("weight decay", f"{optim.weight_decay:g} on weights, none on biases and norms"))
    return rows


def _shown(value: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{part:g}' for part in value)})" if isinstance(value, tuple) else f"{value:g}"


def _training_rows(plan: Plan, config: Config) -> list[tuple[str, str]]:
    counted = plan.total_steps is not None
    unknown = "unknown until counted"
    validation = f"{plan.validation_samples} validation, " * bool(plan.validation_samples)
    apart = f"{plan.train_samples} train, {validation}{plan.test_samples} test"
    return [
        (
            "global batch",
            f"{plan.global_batch} = {plan.batch_per_rank} per rank x {plan.accumulate} passes x {plan.ranks} ranks",
        ),
        ("learning rate", f"{plan.lr_asked:g} asked -> {plan.lr_used:g} used"),
        *_optimizer_rows(plan, config),
        ("samples", f"{apart}; {plan.samples_per_rank} per rank and epoch") if counted else ("samples", unknown),
        ("steps", _steps_text(plan, config) if counted else unknown),
        ("precision", plan.precision),
        *([("best", _BY_TEST)] if counted and config.checkpoint.keep_best and not plan.validation_samples else []),
        *([("weights", f"{plan.weights_path}, SHA-256 {plan.weights_sha256[:12]}")] if plan.weights_sha256 else []),
    ]
