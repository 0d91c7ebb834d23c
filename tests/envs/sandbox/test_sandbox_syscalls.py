"""The tables of system calls: their numbers, and the programs made of them."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.sandbox import confine as sandbox_confine
from envs.sandbox.syscalls import (
    AUDIT_ARCHES,
    FILE_RULES,
    LEAF_RULES,
    PIVOT_ROOT_NUMBERS,
    SECCOMP_NUMBERS,
    ZYGOTE_FILE_RULES,
    ZYGOTE_RULES,
    Condition,
    Rule,
)

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
}
GENERIC_NAMES = {"newfstatat": "fstatat"}
ALLOW, EPERM, KILL = 0x7FFF_0000, 0x0005_0001, 0x8000_0000


def run_filter(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """Return what the classic BPF `program` answers, run by the letter of its definition."""
    words = {0: number, 4: AUDIT_ARCHES[machine]}
    for index, value in enumerate(arguments):
        words |= {16 + 8 * index: value % 2**32, 20 + 8 * index: value >> 32}
    loaded, at = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = words.get(value, 0)
            continue
        holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
        at += true if holds else false


def meeting(way: tuple[Condition, ...]) -> list[int]:
    """Return arguments that meet all conditions of `way`."""
    arguments = [0] * 6
    for condition in way:
        if condition.values:
            arguments[condition.argument] = condition.values[-1]
        elif condition.above is not None:
            arguments[condition.argument] = condition.above + 1
        elif condition.clear_bits:
            arguments[condition.argument] = ~condition.clear_bits % 2**32
    return arguments


def failures(way: tuple[Condition, ...]) -> Iterator[list[int]]:
    """Yield arguments of which one fails its condition."""
    for condition in way:
        wrong = [condition.clear_bits & -condition.clear_bits] if condition.clear_bits else []
        wrong += [77] if condition.values else []
        wrong += [0, condition.above] if condition.above is not None else []
        wrong += [1, 2**32, 2**63] if condition.null else []
        for value in wrong:
            arguments = meeting(way)
            arguments[condition.argument] = value
            yield arguments


def other_way(rule: Rule | None, arguments: list[int]) -> bool:
    """Whether a way of `rule` with conditions on listed values alone allows `arguments`."""
    return any(
        all(c.values and arguments[c.argument] in c.values for c in way)
        for way in (rule.ways if rule else ())
    )


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernel_headers(machine: str) -> None:
    path, pattern = HEADERS[machine]
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    numbers = {name: int(number) for name, number in re.findall(pattern, Path(path).read_text())}
    for name, rule in ZYGOTE_FILE_RULES.items():
        known = numbers.get(name, numbers.get(GENERIC_NAMES.get(name, name)))
        assert rule.number(machine) == known, name
    assert SECCOMP_NUMBERS[machine] == numbers["seccomp"]
    assert PIVOT_ROOT_NUMBERS[machine] == numbers["pivot_root"]


@pytest.mark.parametrize("machine", HEADERS)
@pytest.mark.parametrize(
    "rules", [LEAF_RULES, LEAF_RULES | FILE_RULES, ZYGOTE_RULES, ZYGOTE_FILE_RULES]
)
def test_program_allows_what_its_rules_say(machine: str, rules: dict[str, Rule]) -> None:
    program = sandbox_confine.filter_program(machine, rules)
    assert len(program) // 8 < 4_096
    allowed = {n: rule for rule in rules.values() if (n := rule.number(machine)) is not None}
    assert len(allowed) > 30
    for number in range(500):
        rule = allowed.get(number)
        for way in rule.ways if rule else ():
            assert run_filter(program, machine, number, *meeting(way)) == ALLOW, number
            for failing in failures(way):
                answer = run_filter(program, machine, number, *failing)
                assert answer == (ALLOW if other_way(rule, failing) else EPERM), number
        if not (rule and rule.ways):
            assert run_filter(program, machine, number) == (ALLOW if rule else EPERM), number
    assert run_filter(program, machine, 0x4000_0000) == KILL


def test_leaf_may_do_nothing_that_reaches_beyond_its_process() -> None:
    reaching = """
        clone clone3 fork vfork execve execveat socket socketpair connect bind sendmsg recvmsg
        prctl kill tgkill ptrace dup dup2 pipe2 ioctl setrlimit memfd_create shmget io_uring_setup
    """
    on_paths = """
        openat symlinkat linkat fchmodat utimensat truncate mknodat chdir mount chroot readlinkat
        setxattr fchownat inotify_add_watch
    """
    assert not LEAF_RULES.keys() & set((reaching + on_paths).split())
    with_files = LEAF_RULES | FILE_RULES
    assert with_files.keys() & set((reaching + on_paths).split()) == {"openat"}
    assert with_files.keys() < ZYGOTE_FILE_RULES.keys()
    assert LEAF_RULES.keys() < ZYGOTE_RULES.keys()
