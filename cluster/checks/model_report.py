"""`trialrun doctor MODEL`: whether a model can be trained and served, before anything starts."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cluster.checks.doctor import Finding, write_findings
from cluster.checks.estimate import host_bytes, run_estimate
from cluster.config.run_config import RunConfig
from cluster.lifecycle.model_checks import check_serving
from envs.errors import TrialrunError
from learner.memory import GIB
from learner.packed.policy import load_policy
from learner.packed.probe import check_logprobs
from learner.pretrained.architecture import TrainedModel, check_trained
from learner.pretrained.resolve import check_folder_context, resolve_model
from rollout.chat.findings import template_findings
from rollout.chat.template import ChatTemplate
from rollout.language import check_language, format_of
from rollout.weights.model_folder import read_architecture, text_section, weight_files

PROBED = 2 * GIB
"""Bytes of weights up to which the model is loaded and scored: under a minute on a CPU."""

Check = Callable[[RunConfig, Path], Iterator[Finding]]


def run_model_report(config: RunConfig, gpu_memory_gib: float, *, as_json: bool) -> int:
    """Print what `examine_model` finds; return 1 if the model cannot be used so, else 0."""
    findings = examine_model(config, gpu_memory_gib)
    write_findings(findings, as_json=as_json, stream=sys.stdout)
    return 1 if any(finding.status == "missing" for finding in findings) else 0


def examine_model(config: RunConfig, gpu_memory_gib: float) -> list[Finding]:
    """Check the model of `config` from its files to its memory; nothing is started.

    A check that fails is a finding with the status `missing`, and the others are still made.
    """
    try:
        folder = resolve_model(config.model.path, Path(config.run.models_dir), config.run.seed)
    except TrialrunError as error:
        return [Finding("folder", "missing", str(error))]
    checks: tuple[tuple[str, Check], ...] = (
        ("weights", _weights),
        ("chat template", _template),
        ("tool calls", _language),
        ("context", _context),
        ("learner", _learner),
        ("log-probabilities", _logprobs),
        ("vLLM", _serving),
    )
    found: dict[str, Finding] = {}
    for name, check in (*checks, ("memory", _memory_of(gpu_memory_gib))):
        try:
            rows = list(check(config, folder))
        except TrialrunError as error:
            rows = [Finding(name, "missing", str(error))]
        for row in rows:  # what makes several checks fail is told once
            found.setdefault(row.found, row)
    return list(found.values())


def _weights(config: RunConfig, folder: Path) -> Iterator[Finding]:
    del config
    files = weight_files(folder)
    size = sum(file.stat().st_size for file in files) / GIB
    yield Finding("weights", "ok", f"{len(files)} safetensors, {size:.2f} GiB, in {folder}")


def _template(config: RunConfig, folder: Path) -> Iterator[Finding]:
    for row in template_findings(folder, config.model):
        yield Finding(row.name, row.status, row.detail)


def _language(config: RunConfig, folder: Path) -> Iterator[Finding]:
    template = ChatTemplate.load(folder, config.model)
    format = format_of(template, config.model.tool_format)
    listed = check_language(template, format, config.episode)
    asked = config.model.tool_format
    origin = "as the chat template shows" if asked == "auto" else "model.tool_format"
    if asked == "auto" and not format.as_template:
        origin = "the template shows none"
    where = "by the chat template" if listed else "in the system message"
    told = f"format {format.tools.name} ({origin}); tools are listed {where}"
    yield Finding("tool calls", "ok", told)
    thinking = format.thinking
    if thinking is not None:
        found = f"nothing between {thinking.opening} and {thinking.closing} is an action"
    else:
        found = (
            "nothing in the analysis channel is an action"
            if format.thinks
            else "no marks of thoughts"
        )
    yield Finding("thoughts", "ok", found)


def _context(config: RunConfig, folder: Path) -> Iterator[Finding]:
    check_folder_context(folder, config.model.max_model_len)
    positions = text_section(read_architecture(folder)).get("max_position_embeddings", "unlimited")
    used = f"{positions} positions; model.max_model_len is {config.model.max_model_len}"
    yield Finding("context", "ok", used)


def _learner(config: RunConfig, folder: Path) -> Iterator[Finding]:
    trained = check_trained(folder, config.model)
    kind = str(text_section(read_architecture(folder)).get("model_type", "?"))
    kept = f"; {len(trained.carried)} tensors stay as they are" if trained.carried else ""
    yield Finding("learner", "ok", f"{kind}: names and shapes are those of the checkpoint{kept}")
    yield _packing(config, trained)


def _packing(config: RunConfig, trained: TrainedModel) -> Finding:
    if trained.mixing:
        mixing = ", ".join(trained.mixing)
        return Finding("packing", "warn", f"one episode per pass: {mixing} would mix packed ones")
    if config.learner.packing == "off":
        return Finding("packing", "ok", "one episode per pass: learner.packing is off")
    return Finding("packing", "ok", "several episodes per pass; attention keeps them apart")


def _logprobs(config: RunConfig, folder: Path) -> Iterator[Finding]:
    if sum(file.stat().st_size for file in weight_files(folder)) > PROBED:
        later = "not compared: the learner does it when it has loaded so large a model"
        yield Finding("log-probabilities", "warn", later)
        return
    check_trained(folder, config.model)  # one that is not like its checkpoint cannot be loaded
    cpu, packing = torch.device("cpu"), config.learner.packing == "auto"
    apart = check_logprobs(load_policy(str(folder), torch.float32, cpu, packing=packing))
    compared = "packed, alone and in plain transformers" if packing else "in plain transformers"
    yield Finding("log-probabilities", "ok", f"differ by {apart:.1e} nats at most, {compared}")


def _serving(config: RunConfig, folder: Path) -> Iterator[Finding]:
    check_serving(config, folder)
    device = "GPUs" if config.cluster.gpus_per_worker else "CPUs"
    yield Finding("vLLM", "ok", f"takes the checkpoint's names, on {device}")


def _memory_of(gpu_memory_gib: float) -> Check:
    def memory(config: RunConfig, folder: Path) -> Iterator[Finding]:
        found, _ = run_estimate(config, gpu_memory_gib, folder / "config.json")
        engine = max(host_bytes(engine) for engine in found.engines.values())
        rank = max(rank.device for rank in found.ranks.values())
        size = f"{found.shape.parameters / 1e9:.2f} billion parameters"
        told = f"{size}: {rank / GIB:.1f} GiB a learner rank, {engine / GIB:.1f} GiB a worker"
        if found.problems:
            yield Finding("memory", "warn", f"{told}; {'; '.join(found.problems)}")
        else:
            yield Finding("memory", "ok", told)

    return memory
