"""Hostile tools as data: attacks on the kernel, by system calls and the gates to them."""

from collections.abc import Sequence

from tests.envs.sandbox.probes import FILES, OUTSIDE, Probe

_SYSTEM_CALLS = """
    umount2 166 0|pivot_root 155 0 0|chroot 161 0|mount 165 0 0 0 0 0|swapon 167 0 0
    ptrace 101 9999 0 0 0|process_vm_readv 310 0 0 0 0 0 9|process_vm_writev 311 0 0 0 0 0 9
    pidfd_open 434 0 9|pidfd_getfd 438 99 99 9|pidfd_send_signal 424 99 99 0 9|setns 308 99 0
    unshare 272 0|keyctl 250 999|add_key 248 0 0 0 0 0|request_key 249 0 0 0 0|bpf 321 999 0 0
    perf_event_open 298 0 0 0 0 0|userfaultfd 323 -1|io_uring_setup 425 0 0|io_setup 206 0 0
    init_module 175 0 0 0|finit_module 313 99 0 9|delete_module 176 0 0|kexec_load 246 0 0 0 99
    open_by_handle_at 304 99 0 0|name_to_handle_at 303 99 0 0 0 0|openat2 437 99 0 0 0
    clone 56 65536 0 0 0 0|clone3 435 0 0|execveat 322 99 0 0 0 0|memfd_secret 447 99
    memfd_create 319 0 0|shmget 29 1 0 0|msgget 68 1 0|semget 64 1 0 0|mq_open 240 0 0 0 0
    prctl 157 9999 0 0 0 0|seccomp 317 99 0 0|personality 135 4294967295|arch_prctl 158 0 0
    recvmsg 47 99 0 0|sendmsg 46 99 0 0|ioctl 16 3 0 0|fcntl 72 3 99 0|shutdown 48 99 0
    dup 32 99|socket 41 99 0 0|socketpair 53 99 0 0 0|pipe2 293 0 -1|eventfd2 290 0 -1
    epoll_create1 291 99|signalfd4 289 99 0 8 0|timerfd_create 283 99 0|inotify_init1 294 99
    fanotify_init 300 -1 0|syslog 103 99 0 0|reboot 169 0 0 0 0|sethostname 170 0 9999
    quotactl 179 -1 0 0 0|acct 163 1|iopl 172 99|ioperm 173 0 0 0|modify_ldt 154 99 0 0
    landlock_create 444 0 0 9|fsopen 430 0 9|move_mount 429 99 0 99 0 0|open_tree 428 99 0 9
    pkey_mprotect 329 0 0 5 0|process_madvise 440 99 0 0 0 9|futex_waitv 449 0 0 9 0 0
    setuid 105 4294967295|getsid 124 999999|setpgid 109 -1 -1|sched_setattr 314 0 0 9
    sched_setaffinity 203 0 0 0|ioprio_set 251 9 0 0|move_pages 279 0 0 0 0 0 99|kcmp 312 0 0 9 0 0
    tkill 200 -1 0|tgkill 234 -1 -1 0|rt_sigqueueinfo 129 0 0 0|timer_create 222 99 0 0
    setitimer 38 99 0 0|getitimer 36 99 0|chdir 80 0|getcwd 79 0 0
"""
"""x86-64 numbers, with arguments that are an error even where the call itself is allowed."""

_FILE_CALLS = ("chdir", "getcwd", "dup", "fcntl", "ioctl", "openat2", "chroot")


def _system_calls() -> Sequence[Sequence[str]]:
    return [call.split() for line in _SYSTEM_CALLS.split("\n") for call in line.split("|") if call]


def _raw_body(*, files: bool) -> str:
    calls = [
        (words[0], [int(word) for word in words[1:]])
        for words in _system_calls()
        if words and not (files and words[0] in _FILE_CALLS)
    ]
    return f"for name, numbers in {calls!r}:\n    raw(name, *numbers)"


KERNEL = [
    Probe("system calls", "system calls", _raw_body(files=False), ("compute",), "x86_64"),
    Probe("system calls (files)", "system calls", _raw_body(files=True), FILES, "x86_64"),
    Probe(
        "int 0x80",
        "system calls",
        """
        mmap = libc.mmap
        mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_long] * 5]
        page = mmap(None, 4096, 7, 0x22, -1, 0)
        if page != 2**64 - 1:  # mov eax, 20 (getpid); int 0x80; ret
            ctypes.memmove(page, b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3', 8)
            claims.append(f'process {ctypes.CFUNCTYPE(ctypes.c_int)(page)()}')
        else:  # the two bytes lie somewhere in the C library; eax is the number of doubles
            names = ('abort', 'printf', 'qsort', 'strtol', 'getenv', 'regexec', 'glob', 'select')
            places = [ctypes.cast(getattr(libc, name), ctypes.c_void_p).value for name in names]
            text = ctypes.string_at(min(places), max(places) - min(places))
            offset = text.find(b'\\xcd\\x80')
            if offset >= 0:
                gate = ctypes.CFUNCTYPE(ctypes.c_int)(min(places) + offset)
                claims.append(f'fork {gate(*[ctypes.c_double(0)] * 2)}')
        """,
        machine="x86_64",
        answer="SIGSYS",
    ),
    Probe(
        "x32 calls",
        "system calls",
        "raw('x32', 0x40000000 + 39, harmless=(errno.ENOSYS,))\n"
        "raw('x32 sign', 0x40000000 + 59, 0, 0, 0, harmless=(errno.ENOSYS,))",
        machine="x86_64",
        answer="SIGSYS",
    ),
    Probe(
        "executable memory",
        "system calls",
        "mmap = libc.mmap\n"
        "mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_long] * 5]\n"
        "for protection in (4, 5, 6, 7):\n"
        "    if mmap(None, 4096, protection, 0x22, -1, 0) != 2**64 - 1:\n"
        "        claims.append(f'mmap {protection}')\n"
        "page = mmap(None, 4096, 3, 0x22, -1, 0)\n"
        "if libc.mprotect(ctypes.c_void_p(page), 4096, 5) == 0:\n    claims.append('mprotect')",
    ),
]

ON_THE_MACHINE = [*OUTSIDE, *KERNEL]
"""What no tool has any business with, whatever the sandbox is made of."""
