"""Hostile tools as data, attacks on resources and on the runner."""

from tests.envs.sandbox.probes import Probe

RESOURCES = [
    Probe(
        "4 GiB of memory",
        "memory",
        "attempt('at once', lambda: len(bytearray(4 << 30)))\n"
        "pieces = []\ndef grow():\n    while len(pieces) < 512:\n"
        "        pieces.append(b'x' * (8 << 20))\n"
        "attempt('in pieces', grow)\npieces.clear()\n"
        "attempt('mapped', lambda: __import__('mmap').mmap(-1, 4 << 30) and None)",
    ),
    Probe(
        "memory of many objects",
        "memory",
        "attempt('objects', lambda: sum(len([i] * 99) for i in [[n] for n in range(9 * 10**6)]))",
    ),
    Probe(
        "600 MiB memfd",
        "memory",
        "def fill():\n    number = os.memfd_create('x')\n"
        "    for _ in range(600):\n        os.write(number, b'x' * (1 << 20))\n"
        "attempt('memfd', fill)\n"
        "attempt('shm', lambda: __import__('_posixshmem').shm_open('/' + MARK, 66, 0o600))",
    ),
    Probe(
        "zip bomb",
        "bombs",
        "import zlib\npacker = zlib.compressobj(9, wbits=-15)\n"
        "block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)\n"
        "attempt('inflated', lambda: len(zlib.decompress(block * 4096, wbits=-15)))",
    ),
    Probe(
        "entity bomb",
        "bombs",
        "import xml.etree.ElementTree as tree\n"
        "names = ''.join(f'<!ENTITY e{n} \"{f\"&e{n-1};\" * 10}\">' for n in range(1, 10))\n"
        "text = f'<!DOCTYPE x [<!ENTITY e0 \"lol\">{names}]><x>&e9;</x>'\n"
        "try:\n    claims.append(f'expanded: {len(tree.fromstring(text).text)}')\n"
        "except (tree.ParseError, MemoryError):\n    pass",
    ),
    Probe("regex bomb", "bombs", "re.match('(a+)+$', 'a' * 64 + 'b')", endless=True),
    Probe(
        "loop that ignores signals",
        "CPU",
        "for number in range(1, 65):\n    attempt('', signal.signal, number, signal.SIG_IGN)\n"
        "claims.clear()\nwhile True:\n    pass",
        endless=True,
    ),
    Probe("big number", "CPU", "return str(7 ** (10 ** 9))", endless=True),
    Probe(
        "hash that never ends",
        "CPU",
        "import hashlib\nhashlib.pbkdf2_hmac('sha512', b'', b'', 2**31 - 1)",
        endless=True,
    ),
    Probe("sleep", "CPU", "while True:\n    time.sleep(10**6)", endless=True),
    Probe(
        "system call storm",
        "CPU",
        "page = libc.mmap\npage.restype = ctypes.c_void_p\nwhile True:\n"
        "    libc.munmap(ctypes.c_void_p(page(None, 1 << 22, 3, 0x8022, -1, 0)), 1 << 22)",
        endless=True,
    ),
    Probe(
        "256 MiB of output",
        "flooding",
        "for _ in range(128):\n    print('x' * (1 << 20))\n    os.write(2, b'y' * (1 << 20))\n"
        "os.write(1, MARK.encode())\nsys.__stderr__ and sys.__stderr__.write(MARK)",
    ),
    Probe(
        "10^6 descriptors",
        "limits",
        "def many():\n    for count in range(10**6):\n        os.dup(1)\n"
        "        if count > 2000:\n            return None\n"
        "attempt('descriptors', many)\nattempt('pipes', os.pipe)",
    ),
    Probe(
        "raised limits",
        "limits",
        "for name in ('AS', 'NOFILE', 'NPROC', 'FSIZE', 'CPU', 'CORE', 'RTPRIO'):\n"
        "    number = getattr(resource, f'RLIMIT_{name}')\n"
        "    soft, hard = resource.getrlimit(number)\n"
        "    if hard != resource.RLIM_INFINITY:\n"
        "        attempt(name, resource.setrlimit, number, (hard + 1, hard + 1))\n"
        "    elif name in ('AS', 'NOFILE', 'FSIZE'):\n        claims.append(name)",
    ),
    Probe(
        "signal storm",
        "signals",
        "hits = []\nsignal.signal(signal.SIGUSR1, lambda *_: hits.append(1))\n"
        "attempt('timer', signal.setitimer, signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "attempt('raise', signal.raise_signal, signal.SIGUSR1)\n"
        "for _ in range(999):\n    attempt('parent', os.kill, ZYGOTE, signal.SIGCHLD)\n"
        "    attempt('group', os.killpg, 0, signal.SIGUSR1)\n"
        "attempt('owner', lambda: __import__('fcntl').fcntl(3, 8, SERVER))\ndel claims[9:]",
        bare=False,
    ),
]

RUNNER = [
    Probe(
        "reply flooding",
        "protocol",
        "while True:\n    os.write(3, frame('x' * 60000) * 50)",
        answer="broke its connection",
    ),
    Probe(
        "giant frame",
        "protocol",
        "while True:\n    os.write(3, b'\\x7f' * (1 << 20))",
        answer="broke its connection",
    ),
    Probe("garbage on the socket", "protocol", "os.write(3, b'\\0\\0\\0\\3abc')"),
    Probe("deep frame", "protocol", "os.write(3, frame('[' * 60000))"),
    Probe(
        "half a frame",
        "protocol",
        "os.write(3, frame('x', size=9))\ntime.sleep(10**6)",
        endless=True,
    ),
    Probe("stolen request", "protocol", "os.read(3, 1)", endless=True),
    Probe("closed socket", "protocol", "os.close(3)"),
    Probe(
        "malformed frames",
        "protocol",
        """
        bad = [{'status': 2}, {'number': 2**32 - 1}, {'flags': 255}, {'text': b'\\xed\\xa0\\x80'},
               {'size': 2**32 - 1}, {'number': 0}, {'status': 255, 'size': 0}]
        os.write(3, frame(**bad[MALFORMED % len(bad)]))
        time.sleep(10**6)
        """,
        answer="broke its connection",
    ),
    Probe(
        "forged status",
        "protocol",
        "os.write(3, frame('the machine broke', status=3))\nos._exit(0)",
        answer="broke its connection",
    ),
    Probe(
        "forged times",
        "protocol",
        "os.write(3, frame('[]', wall_ns=2**64 - 1, cpu_ns=2**63))\ntime.sleep(0.2)",
    ),
    Probe(
        "patched runner",
        "interpreter",
        "import builtins\njson.dumps = lambda *_, **__: '{\"number\": 2}'\n"
        "os.write = lambda *_: 10**9\ntime.monotonic = lambda: -1.0\n"
        "builtins.len = lambda _: 0\nrandom.random = lambda: 0.5\nsys.modules['math'] = None\n"
        "sys.exit = os._exit = None",
        endless=True,
    ),
    Probe(
        "frames of the runner",
        "interpreter",
        "frame = sys._getframe()\nwhile frame := frame.f_back:\n"
        "    for value in list(frame.f_locals.values()):\n"
        "        if type(value).__name__ == 'SessionChild':\n"
        "            claims += re.findall(NEEDLE + '[0-9a-f]+', repr(vars(value)))\n"
        "            value._reply_limit = 10**9\n"
        "if claims:\n    return claims\nreturn 'x' * (3 << 20)",
    ),
    Probe(
        "settrace and setprofile",
        "interpreter",
        """
        def spy(frame, event, argument):
            claims.extend(re.findall(NEEDLE + '[0-9a-f]+', repr(frame.f_locals)[:9999]))
            for name in ('status', 'flags', 'wall_ns'):
                if name in frame.f_locals:
                    frame.f_locals[name] = 9
            return spy
        frame = sys._getframe()
        while frame := frame.f_back:
            frame.f_trace = spy
        sys.settrace(spy)
        sys.setprofile(spy)
        threading.settrace(spy)
        threading.setprofile(spy)
        """,
    ),
    Probe(
        "hostile values",
        "interpreter",
        """
        class Text(str):
            def __str__(self):
                return self
            def __getitem__(self, _):
                return self
            def encode(self, *_):
                return b'x' * (3 << 20)
            def __reduce__(self):
                return (os.system, (f'echo x > {FOLDER}/reduced',))
        class Trick(dict):
            def items(self):
                raise SystemExit
            def __reduce_ex__(self, _):
                return (exec, (f'open({FOLDER + "/reduced"!r}, "w")',))
            __repr__ = __str__ = __class_getitem__ = lambda *_: Text('x')
        deep = []
        for _ in range(10**5):
            deep = [deep]
        def pickled():
            pickle = __import__('pickle')
            pickle.loads(pickle.dumps(Text('x')))
        attempt('pickle', pickled)
        claims.clear()  # whatever pickle ran, it ran in here; the folder tells
        return Text('x') if MALFORMED % 2 else [Trick(a=1), deep]
        """,
    ),
    Probe(
        "hostile exceptions",
        "interpreter",
        "class Hostile(BaseException):\n    def __str__(self):\n        raise KeyboardInterrupt\n"
        "    __repr__ = __str__\ntry:\n    raise Hostile\nexcept Hostile as error:\n"
        "    error.__cause__ = error\n    raise error",
    ),
    Probe("exit", "interpreter", "os._exit(0)", answer="ended its own process"),
    Probe("crash", "interpreter", "ctypes.string_at(0)", answer="SIGSEGV"),
    Probe(
        "invalid bytecode",
        "interpreter",
        "code = probe.__code__.replace(co_code=bytes([100, 255, 83, 0] * 8), co_consts=())\n"
        "types.FunctionType(code, {})()",
    ),
    Probe(
        "source that breaks the compiler",
        "interpreter",
        f"return {'-' * 50_000}1",
        answer="could not be loaded",
    ),
    Probe(
        "recursion",
        "interpreter",
        "sys.setrecursionlimit(10**9)\ndef down(n):\n    return json.dumps([down(n + 1)])\ndown(0)",
        endless=True,
    ),
    Probe(
        "garbage collector off",
        "interpreter",
        "gc.disable()\ngc.set_debug(gc.DEBUG_SAVEALL)\nclass Knot:\n    def __del__(self):\n"
        "        os.write(3, b'x')\nfor _ in range(99):\n    knot = Knot()\n    knot.knot = knot\n"
        "del knot\ngc.collect()",
    ),
]
