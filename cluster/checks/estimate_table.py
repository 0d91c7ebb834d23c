"""An estimate as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from cluster.checks.estimate import Estimate
from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from learner.memory import GIB, EngineMemory

_CONTEXT_ROW = "context, fragments"


def print_estimate(config: RunConfig, estimate: Estimate, console: Console) -> None:
    """Write one table per kind of process, then the problems."""
    shape = estimate.shape
    console.print(
        f"{config.model.path}: {shape.parameters:,} parameters in {config.model.dtype}, "
        f"{estimate.trainable:,} trained, sequences to {config.model.max_model_len:,} of "
        f"{shape.positions:,} tokens"
    )
    console.print(_ranks(config, estimate))
    kinds = config.worker_kinds()
    for name, engine in estimate.engines.items():
        console.print(_engine(name, kinds[name], engine))
    console.print(_host(estimate))
    for problem in estimate.problems:
        console.print(f"[red]does not fit:[/] {problem}")
    if not estimate.problems:
        where = f"GPUs of {estimate.gpu / GIB:.0f} GiB" if estimate.gpu else "the CPU"
        console.print(f"[green]fits[/] on {where}")


def _ranks(config: RunConfig, estimate: Estimate) -> Table:
    ranks = list(estimate.ranks.values())
    table = Table("", *(f"[{name}]".replace("[", r"\[") for name in estimate.ranks), box=None)
    table.title = f"GiB of one learner rank, of {config.learner.ranks}"
    sections = {"learner": config.learner, "sft": config.sft}
    table.add_row("ZeRO stage", *(str(sections[name].zero_stage) for name in estimate.ranks))
    table.add_row("tokens of the longest pass", *(f"{rank.tokens:,}" for rank in ranks))
    for label, sizes in (
        ("weights", [rank.states.weights for rank in ranks]),
        ("gradients", [rank.states.gradients for rank in ranks]),
        ("master weights", [rank.states.master for rank in ranks]),
        ("optimizer moments", [rank.states.moments for rank in ranks]),
        ("gathered layers, buckets", [rank.states.buffers for rank in ranks]),
        ("reference model", [rank.reference for rank in ranks]),
        ("activations", [rank.activations for rank in ranks]),
        ("logits of a chunk", [rank.logits for rank in ranks]),
    ):
        table.add_row(label, *map(_gib, sizes))
    rest = [
        rank.device - rank.states.device - rank.reference - rank.activations - rank.logits
        for rank in ranks
    ]
    table.add_row(_CONTEXT_ROW, *map(_gib, rest))
    table.add_row("[bold]together[/]", *(f"[bold]{_gib(rank.device)}[/]" for rank in ranks))
    table.add_row("in host memory", *(_gib(rank.states.host) for rank in ranks))
    others = [
        f"{_gib(rank.other_activations)} "
        f"{'without' if sections[name].activation_checkpointing else 'with'}"
        for name, rank in estimate.ranks.items()
    ]
    table.add_row("activations with/without checkpointing", *others)
    return table


def _engine(name: str, config: RunConfig, engine: EngineMemory) -> Table:
    """Return the table of one engine; `config` is that of its group (`RunConfig.worker_kinds`)."""
    parallel = config.engine.tensor_parallel_size
    table = Table("", "", box=None, show_header=False)
    each = f", one of {parallel} GPUs" if parallel > 1 else ""
    group = "" if name == DEFAULT_GROUP else f" of group {name}"
    table.title = f"GiB of one rollout worker{group}, of {config.rollouts.workers}{each}"
    table.add_row("weights", _gib(engine.weights))
    table.add_row("longest prefill", _gib(engine.activations))
    table.add_row("KV cache", _gib(engine.cache))
    table.add_row("KV cache per token", f"{engine.cache_per_token / 1024:.1f} KiB")
    table.add_row(
        f"sequences of {config.model.max_model_len:,} tokens in it", f"{engine.sequences:.1f}"
    )
    return table


def _host(estimate: Estimate) -> Table:
    table = Table("", "", box=None, show_header=False)
    table.title = "GiB of the node's memory"
    table.add_row("one push", _gib(estimate.push))
    for label, size in estimate.host.items():
        table.add_row(label, _gib(size))
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
