"""Hostile tools as data: calls that open a gate to the kernel, with arguments that would work.

Where a filter refuses a call, the arguments do not matter; where it does not, these show it.
"""

from tests.envs.sandbox.probes import FILES, Probe


def _gate(name: str, body: str, *, bare: bool = False) -> Probe:
    return Probe(name, "gates to the kernel", body, machine="x86_64", bare=bare)


GATES = [
    _gate("io_uring", "raw('setup', 425, 8, ctypes.create_string_buffer(120))"),
    _gate("userfaultfd", "raw('own faults', 323, 1)\nraw('all faults', 323, 0)"),
    _gate(
        "bpf",
        "attributes = struct.pack('=IIII', 2, 4, 4, 1) + bytes(104)\n"
        "raw('map', 321, 0, attributes, 120)\nraw('program', 321, 5, bytes(120), 120)",
    ),
    _gate(
        "perf",
        "attributes = struct.pack('=IIQ', 1, 112, 0) + bytes(96)\n"
        "for pid in (0, -1, SERVER):\n    raw('counter', 298, attributes, pid, 0, -1, 0)",
    ),
    _gate(
        "keys",
        "raw('add', 248, b'user', b'x', b'y', 1, -4)\nraw('read', 250, 11, -4, 0, 0)\n"
        "raw('join', 250, 1, 0)\nraw('request', 249, b'user', b'x', 0, -4)",
    ),
    _gate("a descriptor of itself", "raw('pidfd', 434, os.getpid(), 0)"),
    _gate(
        "signals by descriptor",
        "for number in range(3, 16):\n    raw('signal', 424, number, 0, 0, 0)",
    ),
    _gate("ptrace of itself", "raw('traceme', 101, 0, 0, 0, 0)"),
    _gate(
        "memory of others",
        "part = struct.pack('QQ', ctypes.addressof(ctypes.create_string_buffer(8)), 8)\n"
        "for pid in (SERVER, ZYGOTE, os.getpid()):\n"
        "    raw('read', 310, pid, part, 1, part, 1, 0)\n"
        "    raw('write', 311, pid, part, 1, part, 1, 0)\n"
        "    raw('advise', 440, pid, part, 1, 4, 0)",
    ),
    _gate("secret memory", "raw('memfd_secret', 447, 0)"),
    _gate("sealed memory", "raw('memfd', 319, b'x', 0x12)\nraw('executable', 319, b'x', 0x10)"),
    _gate(
        "clone with namespaces",
        "for flag in (0x10000000, 0x20000000, 0x40000000, 0x8000000, 0x20000, 0x80, 0):\n"
        "    if raw(f'clone {flag:x}', 56, flag | 17, 0, 0, 0, 0) == 0:\n        os._exit(0)",
    ),
    _gate(
        "clone as a thread",
        "stack = ctypes.create_string_buffer(65536)\n"
        "raw('thread', 56, 0x50f00, ctypes.addressof(stack) + 65000, 0, 0, 0)",
    ),
    _gate(
        "clone3 and vfork",
        "if raw('clone3', 435, struct.pack('11Q', *[0] * 4, 17, *[0] * 6), 88) == 0:\n"
        "    os._exit(0)\nif raw('vfork', 58) == 0:\n    libc._exit(0)",
    ),
    _gate(
        "new namespaces",
        "for flag in (0x10000000, 0x40000000, 0x20000, 0x4000000, 0x400):\n"
        "    raw(f'unshare {flag:x}', 272, flag)\nraw('setns', 308, 3, 0)",
    ),
    _gate("netlink", "for kind in (0, 4, 9, 12, 15, 16):\n    raw('netlink', 41, 16, 3, kind)"),
    _gate(
        "pairs of sockets",
        "pair = ctypes.create_string_buffer(8)\n"
        "for family in (1, 16, 38, 40):\n    raw('pair', 53, family, 1, 0, pair)",
    ),
    _gate(
        "its own socket",
        "room = ctypes.create_string_buffer(256)\nraw('sendmsg', 46, 3, room, 0)\n"
        "raw('recvmsg', 47, 3, room, 0x40)\nraw('sendto', 44, 3, b'x', 1, 0, 0, 0)\n"
        "raw('peer', 55, 3, 1, 17, room, struct.pack('I', 12))\nraw('name', 52, 3, room, room)\n"
        "raw('set', 54, 3, 1, 8, b'\\xff\\xff\\xff\\x7f', 4)\nraw('shutdown', 48, 3, 2)\n"
        "raw('bind', 49, 3, struct.pack('H', 1) + MARK.encode(), 9)",
    ),
    _gate(
        "event descriptors",
        "raw('eventfd', 290, 0, 0)\nraw('epoll', 291, 0)\nraw('timerfd', 283, 1, 0)\n"
        "raw('signalfd', 289, -1, bytes(8), 8, 0)\nraw('inotify', 294, 0)\n"
        "raw('fanotify', 300, 0x200, 0)",
    ),
    _gate(
        "pipes and splices",
        "pair = ctypes.create_string_buffer(8)\nraw('pipe', 22, pair)\nraw('pipe2', 293, pair, 0)\n"
        "raw('splice', 275, 3, 0, 3, 0, 9, 2)\nraw('tee', 276, 3, 3, 9, 2)\n"
        "raw('vmsplice', 278, 3, 0, 0, 2)\nraw('sendfile', 40, 3, 0, 0, 9)\n"
        "raw('copy', 326, 0, 0, 1, 0, 9, 0)",
    ),
    _gate("asynchronous files", "raw('setup', 206, 4, struct.pack('Q', 0))\nraw('get', 208, 0)"),
    _gate(
        "message queues", "raw('open', 240, b'trialrun', 0o102, 0o600, 0)\nraw('gone', 241, b'x')"
    ),
    _gate("personality", "for bits in (0x40000, 0x400000, 8):\n    raw('set', 135, bits)"),
    _gate(
        "segments and registers",
        "raw('gs', 158, 0x1001, 0)\nraw('fs', 158, 0x1003, bytes(8))\n"
        "raw('shadow', 158, 0x5001, 1)\n"
        "raw('ldt', 154, 0, bytes(16), 16)\nraw('iopl', 172, 3)\nraw('ioperm', 173, 0, 9, 1)",
    ),
    _gate(
        "prctl",
        "for option, value in ((4, 1), (15, b'x'), (35, 1), (1, 0), (36, 1), (22, 2), (29, 1),\n"
        "        (0x59616d61, -1), (38, 0), (24, 1), (47, 1), (53, 0), (41, 1), (23, 1)):\n"
        "    raw(f'option {option}', 157, option, value, 0, 0, 0)",
    ),
    _gate(
        "a filter of its own",
        "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n"
        "program = struct.pack('HxxxxxxQ', 1, ctypes.addressof(code))\n"
        "for flags in (0, 1, 8, 24):\n    raw('filter', 317, 1, flags, program)",
    ),
    _gate("rules of its own", "raw('version', 444, 0, 0, 1)\nraw('rules', 444, bytes(8), 8, 0)"),
    _gate(
        "priorities",
        "raw('nice', 141, 0, 0, -20)\nraw('io', 251, 1, 0, 1 << 13)\n"
        "raw('scheduler', 144, 0, 1, struct.pack('i', 1))\nraw('affinity', 203, 0, 8, bytes(8))\n"
        "raw('attributes', 314, 0, struct.pack('II', 48, 0) + bytes(40), 0)",
    ),
    _gate(
        "timers",
        "raw('create', 222, 1, 0, ctypes.create_string_buffer(8))\n"
        "raw('interval', 38, 0, struct.pack('4q', 9, 9, 9, 9), 0)\nraw('alarm', 37, 9)",
    ),
    _gate(
        "lists that the kernel walks",
        "raw('robust', 273, ctypes.create_string_buffer(24), 24)\n"
        "room = ctypes.create_string_buffer(8)\nraw('theirs', 274, ZYGOTE, room, room)\n"
        "raw('rseq', 334, ctypes.create_string_buffer(64), 32, 0, 0)\nraw('barrier', 324, 0, 0)\n"
        "raw('tid', 218, ctypes.create_string_buffer(8))",
    ),
    _gate(
        "locked memory",
        "page = ctypes.create_string_buffer(8192)\nraw('lock', 149, page, 4096)\n"
        "raw('lock2', 325, page, 4096, 0)\nraw('all', 151, 1)\nraw('moved', 256, 0, 8, 0, 0)",
    ),
    _gate(
        "users and capabilities",
        "raw('uid', 105, 0)\nraw('uids', 117, 0, 0, 0)\nraw('gids', 119, 0, 0, 0)\n"
        "raw('groups', 116, 0, 0)\nraw('fsuid', 122, 0)\n"
        "raw('capabilities', 126, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)",
    ),
    _gate("keys of pages", "raw('new', 330, 0, 0)\nraw('protect', 329, 0, 4096, 5, 0)"),
    _gate(
        "mounts",
        "raw('open', 430, b'tmpfs', 0)\nraw('tree', 428, -100, b'/', 1)\n"
        "raw('mount', 165, b'x', b'/', b'tmpfs', 0, 0)\n"
        "raw('attributes', 442, -100, b'/', 0, 0, 0)\n"
        "raw('list', 458, struct.pack('IIQQ', 24, 0, 2**64 - 1, 0), bytes(64), 8, 0)",
    ),
    _gate(
        "files by handle",
        "raw('name', 303, -100, b'/', struct.pack('II', 128, 0) + bytes(128), bytes(8), 0)\n"
        "raw('open', 304, -100, struct.pack('II', 8, 1) + bytes(8), 0)",
    ),
    _gate(
        "modules and kernels",
        "raw('init', 175, 0, 0, b'')\nraw('file', 313, 3, b'', 0)\nraw('delete', 176, b'x', 0)\n"
        "raw('kexec', 246, 0, 0, 0, 0)\nraw('kexec file', 320, 3, 3, 0, b'', 0)",
    ),
    _gate(
        "the machine",
        "room = ctypes.create_string_buffer(512)\nraw('log', 103, 3, room, 512)\n"
        "raw('name', 63, room)\nraw('load', 99, room)\nraw('processor', 309, room, room, 0)\n"
        "raw('cores', 204, 0, 128, room)\nraw('host', 170, b'x', 1)\nraw('acct', 163, 0)",
    ),
    _gate(
        "new system calls",
        "for number in range(424, 600):\n    if number != 439:  # allowed with files\n"
        "        raw(f'call {number}', number, -1, -1, -1, -1, -1, -1)\ndel claims[9:]",
    ),
    _gate(
        "the page of old calls",
        "place = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * 3)(0xffffffffff600800)\n"
        "if place(ctypes.create_string_buffer(8), None, None) == 0:\n    claims.append('getcpu')",
    ),
    # Landlock lets the files of namespaces be opened: what counts is what one is good for.
    _gate(
        "use of a namespace's file",
        "try:\n    own = os.open('/proc/self/ns/user', os.O_RDONLY)\nexcept OSError:\n"
        "    own = -1\nraw('enter', 308, own, 0)\nraw('parent', 16, own, 0xB702, 0)\n"
        "raw('owner', 16, own, 0xB701, 0)",
    ),
    Probe(
        "oddities of /proc",
        "gates to the kernel",
        "for path in ('self/mem', 'self/exe', 'self/fd/3', 'self/map_files', 'thread-self/comm',\n"
        "        'self/timerslack_ns', 'self/oom_score_adj', 'self/pagemap', 'self/clear_refs',\n"
        "        'kcore', 'kallsyms', 'loadavg', 'schedstat', 'interrupts'):\n"
        "    attempt(path, lambda: os.close(os.open('/proc/' + path, os.O_RDONLY)))",
    ),
]

OWN_FILES = [
    Probe(
        "odd commands on a file",
        "descriptors",
        "own = os.open('mine', os.O_CREAT | os.O_RDWR)\nroom = ctypes.create_string_buffer(64)\n"
        "for command in (8, 10, 15, 16, 26, 37, 38, 1024, 1026, 1031, 1033, 1036, 1040):\n"
        "    raw(f'command {command}', 72, own, command, room)\nraw('flock', 73, own, 2)",
        FILES,
        "x86_64",
    ),
    Probe(
        "locks on standard streams",
        "descriptors",
        "lock = struct.pack('hhqqi', 1, 0, 0, 0, 0) + bytes(16)\n"
        "for number in (0, 1, 2, 3):\n    for command in (5, 6, 7, 36, 37, 1030):\n"
        "        raw(f'{command} on {number}', 72, number, command, lock)",
        FILES,
        "x86_64",
    ),
    Probe(
        "attributes and links of a file",
        "links",
        "open('mine', 'w').close()\nraw('link', 86, b'mine', b'other')\n"
        "raw('linkat', 265, -100, b'mine', -100, b'other', 0)\nraw('symlink', 88, b'/', b'other')\n"
        "raw('xattr', 188, b'mine', b'user.x', b'y', 1, 0)\nraw('chmod', 90, b'mine', 0o4777)\n"
        "raw('chown', 92, b'mine', 0, 0)\nraw('times', 280, -100, b'mine', 0, 0)\n"
        "raw('node', 133, b'node', 0o10600, 0)",
        FILES,
        "x86_64",
    ),
    Probe(
        "folders without number",
        "limits",
        "made = 0\ntry:\n    for made in range(1000):\n        os.mkdir(f'folder-{made}')\n"
        "    time.sleep(0.7)\n    claims.append(f'{made + 1} folders')\nexcept OSError:\n    pass",
        FILES,
        minor=True,
    ),
    Probe(
        "a deep tree",
        "limits",
        "here = os.open('.', os.O_RDONLY)\ntry:\n    for _ in range(400):\n"
        "        os.mkdir('d' * 200, dir_fd=here)\n"
        "        inner = os.open('d' * 200, os.O_RDONLY, dir_fd=here)\n"
        "        os.close(here)\n        here = inner\nexcept OSError:\n    pass",
        FILES,
    ),
    Probe(
        "a file that is gone and full",
        "limits",
        "held = []\ntry:\n    for number in range(40):\n"
        "        file = open('gone', 'wb', buffering=0)\n"
        "        os.unlink('gone')\n        held.append(file)\n"
        "        if number * (1 << 20) > 2 * SCRATCH_BYTES:\n"
        "            claims.append(f'{number} MiB in files without a name')\n            break\n"
        "        file.write(b'x' * (1 << 20))\nexcept OSError:\n    pass",
        FILES,
        minor=True,
    ),
]
