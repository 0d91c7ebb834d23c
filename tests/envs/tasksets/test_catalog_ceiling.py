"""The ceiling of a policy that may not try, against counting by hand and by brute force."""

from collections import defaultdict
from itertools import permutations, product

import pytest

from envs.errors import ConfigError
from envs.tasksets.catalog.ceiling import estimate_ceiling, task_ceiling
from envs.tasksets.catalog.config import CatalogConfig
from envs.tasksets.catalog.operations import OPERATIONS
from envs.tasksets.catalog.questions import sample_parts


def easy(**fields: object) -> CatalogConfig:
    """No quirks and no telling docs, unless `fields` say so."""
    plain = {"quirks": {"none": 1.0}, "docs": {"vague": 1.0}}
    return CatalogConfig.model_validate({**plain, **fields})


@pytest.mark.parametrize(("tools", "calls"), [(2, 1), (4, 1), (3, 2), (4, 3), (4, 4)])
def test_with_marks_and_nothing_told_the_chance_is_calls_over_tools(tools: int, calls: int) -> None:
    found = estimate_ceiling(easy(tools=tools, marks=1.0), calls, tasks=5)
    assert found.success == pytest.approx(calls / tools)
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)


def test_at_depth_two_both_tools_must_be_hit() -> None:
    config = easy(tools=4, depths={"2": 1.0}, marks=1.0)
    assert estimate_ceiling(config, 1, tasks=2).success == 0.0  # both marks are in these answers
    assert estimate_ceiling(config, 2, tasks=2).success == pytest.approx(2 / 4 * 1 / 3)
    assert estimate_ceiling(easy(tools=2, depths={"2": 1.0}, marks=1.0), 2, tasks=4).success == 1.0


def test_a_mark_that_a_later_operation_drops_is_not_needed() -> None:
    """One call is enough for two goals where the answer shows only the last tool's mark."""
    config = easy(tools=4, depths={"2": 1.0}, marks=1.0)
    dropped = 0
    for index in range(60):
        task = sample_parts(config, "heldout", 0, index)
        first, last = task.tools.needed
        assert last.mark in task.answer
        needed = 1 if first.mark not in task.answer else 2
        dropped += needed == 1
        found = task_ceiling(config, 1, index)
        assert found == pytest.approx(1 / 4 if needed == 1 else 0.0)
    assert 1 <= dropped <= 12


def test_moving_texts_the_order_counts_as_well() -> None:
    config = easy(tools=2, depths={"2": 1.0})
    found = estimate_ceiling(config, 2, tasks=40)
    assert 0.5 <= found.success < 0.75
    assert estimate_ceiling(config, 3, tasks=10).success == pytest.approx(1.0)


def test_a_refused_call_costs_one() -> None:
    keyed = {"quirks": {"key": 1.0}, "marks": 1.0}
    assert estimate_ceiling(easy(tools=1, **keyed), 1, tasks=3).success == pytest.approx(1 / 6)
    assert estimate_ceiling(easy(tools=1, **keyed), 2, tasks=3).success == pytest.approx(1.0)
    swapped = {"quirks": {"pair": 0.75, "order": 0.25}, "marks": 1.0}
    assert estimate_ceiling(easy(tools=1, **swapped), 1, tasks=3).success == pytest.approx(0.75)
    assert estimate_ceiling(easy(tools=1, quirks={"busy": 1.0}), 1, tasks=3).success == 0.0


def test_one_call_by_the_docs_agrees_with_brute_force() -> None:
    config = easy(tools=2, docs={"vague": 0.5, "true": 0.2, "false": 0.3})
    expected = by_brute_force({"vague": 0.5, "true": 0.2, "false": 0.3})
    found = estimate_ceiling(config, 1, tasks=600)
    assert abs(found.success - expected) < 4 * found.standard_error
    assert 0.003 < found.standard_error < 0.02


def by_brute_force(docs: dict[str, float]) -> float:
    """Sum over all that two tools may be and say: the best tool to call for what is seen."""
    names = [operation.name for operation in OPERATIONS]
    right: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    said = ["vague", *names]

    def chance(doc: str, name: str) -> float:
        if doc == "vague":
            return docs["vague"]
        return docs["true"] if doc == name else docs["false"] / (len(names) - 1)

    pairs = list(permutations(names, 2))
    for pair, first, second in product(pairs, said, said):
        for target in (0, 1):
            weight = chance(first, pair[0]) * chance(second, pair[1]) / len(pairs) / 2
            right[first, second, pair[target]][target] += weight
    return sum(max(weights) for weights in right.values())


def test_more_calls_never_hurt_and_docs_help() -> None:
    config = CatalogConfig()
    by_calls = [estimate_ceiling(config, calls, tasks=12).success for calls in (0, 1, 2)]
    assert by_calls == sorted(by_calls)
    assert by_calls[0] == 0.0
    told = estimate_ceiling(easy(docs={"true": 1.0}), 1, tasks=5)
    assert told.success == pytest.approx(1.0)


def test_duplicates_are_refused() -> None:
    with pytest.raises(ConfigError, match="duplicates"):
        estimate_ceiling(easy(duplicates=0.5), 1, tasks=1)
