"""Hostile tools as data: forged answers, and what a tool does when it has answered."""

from tests.envs.sandbox.probes import Probe

_BROKEN = "broke its connection"


def _frame(name: str, body: str, answer: str = "", *, endless: bool = False) -> Probe:
    return Probe(name, "protocol", body, answer=answer, endless=endless)


FRAMES = [
    _frame("an answer, then computing", "os.write(3, frame('[]'))\nwhile True:\n    pass", r"\[\]"),
    _frame("an answer, then sleep", "os.write(3, frame('[]'))\ntime.sleep(10**6)", r"\[\]"),
    _frame("an answer, then the end", "os.write(3, frame('[]'))\nos._exit(0)", r"\[\]"),
    _frame(
        "an answer, then memory",
        "os.write(3, frame('[]'))\nheld = []\nwhile True:\n    held.append(bytearray(1 << 20))",
        r"\[\]",
    ),
    _frame("half a header", "os.write(3, frame()[:13])\ntime.sleep(10**6)", endless=True),
    _frame(
        "single bytes",
        "for byte in frame('x' * 9999):\n    os.write(3, bytes([byte]))\n    time.sleep(1e-3)",
        endless=True,
    ),
    _frame("an answer to another call", "os.write(3, frame(number=2))\ntime.sleep(9)", _BROKEN),
    _frame("two answers", "os.write(3, frame() * 2)\ntime.sleep(9)", _BROKEN),
    _frame("text that is none", "os.write(3, frame(b'\\xff\\xfe'))\ntime.sleep(9)", _BROKEN),
    _frame("a length of 4 GiB", "os.write(3, frame(size=2**32 - 1))\ntime.sleep(9)", _BROKEN),
    _frame("flags without a meaning", "os.write(3, frame(flags=128))\ntime.sleep(9)", _BROKEN),
    _frame("a status without a meaning", "os.write(3, frame(status=7))\ntime.sleep(9)", _BROKEN),
    _frame(
        "JSON as an answer",
        "body = json.dumps({f'k{n}': n for n in range(20000)}).encode()\n"
        "os.write(3, struct.pack('>I', len(body)) + body)\ntime.sleep(9)",
        _BROKEN,
    ),
    _frame("descriptors closed", "os.closerange(0, 64)", "ended its own process"),
    _frame("answer after a closed read", "os.read(3, 0)\nos.write(3, frame('[]')[:0])"),
    _frame(
        "a socket that does not block",
        "try:\n    os.set_blocking(3, False)\nexcept OSError:\n    pass",
    ),
]

OWN_PROCESS = [
    Probe(
        "SIGSTOP of itself",
        "signals",
        "attempt('kill', os.kill, os.getpid(), signal.SIGSTOP)\n"
        "attempt('raise', signal.raise_signal, signal.SIGSTOP)\n"
        "attempt('terminal', os.kill, 0, signal.SIGTSTP)",
        bare=False,
    ),
    Probe(
        "stack overflow",
        "interpreter",
        "compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)\n"
        "room = ctypes.create_string_buffer(64)\ndef again(a, b):\n"
        "    libc.qsort(room, 4, 4, callback)\n    return 0\ncallback = compare(again)\n"
        "sys.setrecursionlimit(10**6)\nagain(0, 0)",
    ),
    Probe(
        "memory that comes and goes",
        "memory",
        "for _ in range(30):\n    held = bytearray(120 << 20)\n    del held",
    ),
    Probe(
        "many mappings",
        "memory",
        "mmap = libc.mmap\nmmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p,\n"
        "    ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]\n"
        "for number in range(40000):\n    place = mmap(None, 4096, number % 2 * 3, 0x4022, -1, 0)\n"
        "    if place == 2**64 - 1:\n        break",
    ),
    Probe(
        "huge pages",
        "memory",
        "mmap = libc.mmap\nmmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p,\n"
        "    ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]\n"
        "if mmap(None, 2 << 20, 3, 0x40022, -1, 0) != 2**64 - 1:\n    claims.append('a huge page')",
        bare=False,
    ),
    Probe(
        "time of the children",
        "clocks and seeds",
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "if used.ru_utime + used.ru_stime > 0:\n    claims.append('the time of other sessions')\n"
        "attempt('load', os.getloadavg)",
        minor=True,
        bare=False,
    ),
    Probe(
        "timing between sessions",
        "clocks and seeds",
        "slow, before = 0, time.monotonic_ns()\nfor _ in range(20000):\n"
        "    now = time.monotonic_ns()\n    slow = max(slow, now - before)\n    before = now\n"
        "for number in (9, 11, 12, 16):\n"
        "    attempt(f'clock {number}', time.clock_gettime, number | 2**20)",
    ),
]
