"""Hostile tools as data: attacks on other sessions and on the scratch; and all probes together."""

from tests.envs.sandbox.probes import FILES, Probe
from tests.envs.sandbox.probes_frames import FRAMES, OWN_PROCESS
from tests.envs.sandbox.probes_gates import GATES, OWN_FILES
from tests.envs.sandbox.probes_inside import RESOURCES, RUNNER
from tests.envs.sandbox.probes_kernel import ON_THE_MACHINE

_SCAN = """
size, probed = 4096, {}
def readable(page):
    if page not in probed:  # copies eight bytes in, then complains about 99
        ctypes.set_errno(0)
        libc.syscall(ctypes.c_long(14), ctypes.c_long(99), ctypes.c_void_p(page * size), None,
                     ctypes.c_long(8))
        probed[page] = ctypes.get_errno() != errno.EFAULT
    return probed[page]
roots = {id(item) // size for item in gc.get_objects()} | {id(claims) // size}
for module in list(sys.modules.values()):
    roots |= {id(item) // size for item in vars(module).values()}
todo, seen = list(roots), set()
while todo and len(seen) < 20000:
    page = todo.pop()
    if page in seen or page <= 0 or not readable(page):
        continue
    seen.add(page)
    text = ctypes.string_at(page * size, size)
    claims.extend(found.decode() for found in re.findall(NEEDLE.encode() + rb'[0-9a-f]{32}', text))
    todo += [page - 1, page + 1]
assert len(seen) > 500, len(seen)
"""

SESSIONS = [
    Probe(
        "answer key among the objects",
        "other sessions",
        """
        todo, seen = [*sys.modules.values(), *gc.get_objects(), sys._getframe()], set()
        while todo and len(seen) < 400000:
            item = todo.pop()
            if id(item) in seen or item is todo or item is seen:
                continue
            seen.add(id(item))
            if isinstance(item, (str, bytes)):
                text = item if isinstance(item, str) else item.decode('latin-1')
                claims.extend(re.findall(NEEDLE + '[0-9a-f]{32}', text))
            else:
                todo += gc.get_referents(item)
        assert len(seen) > 9999, len(seen)
        """,
    ),
    Probe("answer key in the heap", "other sessions", _SCAN, machine="x86_64"),
    Probe(
        "fresh memory",
        "other sessions",
        "libc.malloc.restype = ctypes.c_void_p\nfor length in (64, 999, 4000, 1 << 16, 32 << 20):\n"
        "    for _ in range(50 if length < 1 << 16 else 2):\n"
        "        if place := libc.malloc(ctypes.c_size_t(length)):\n"
        "            text = ctypes.string_at(place, length)\n"
        "            claims += re.findall(NEEDLE + '[0-9a-f]{32}', text.decode('latin-1'))",
    ),
    Probe(
        "shared memory",
        "other sessions",
        "raw('shmget', 29, 0x7472, 4096, 0o1666)\nraw('semget', 64, 0x7472, 1, 0o1666)\n"
        "raw('msgget', 68, 0x7472, 0o1666)\nraw('add_key', 248, 0, 0, 0, 0, -3)\n"
        "attempt('shm', lambda: open('/dev/shm/' + MARK, 'w'))",
        machine="x86_64",
        bare=False,
    ),
    Probe(
        "state for the next session",
        "other sessions",
        "import builtins, decimal, locale, warnings\nbuiltins.abs = lambda _: 666\n"
        "decimal.getcontext().prec = 3\nlocale.setlocale(locale.LC_ALL, 'C')\n"
        "warnings.simplefilter('error')\nsys.setrecursionlimit(99)\ngc.disable()\n"
        "os.environ['TZ'] = 'Asia/Tokyo'\ntime.tzset()\nrandom.seed(5)\nsys.path.append('/evil')\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsys.modules['evil'] = sys",
    ),
    Probe(
        "clocks set",
        "clocks and seeds",
        "attempt('clock', time.clock_settime, time.CLOCK_REALTIME, time.time())\n"
        "raw('settimeofday', 164, 0, 0)\nraw('adjtimex', 159, 0)\nraw('clock_adjtime', 305, 0, 0)",
        machine="x86_64",
        bare=False,
    ),
    Probe(
        "clocks of others",
        "clocks and seeds",
        "for pid in [SERVER, VICTIM, ZYGOTE, *range(1, 300)]:\n"
        "    if pid != os.getpid():\n"
        "        attempt(f'CPU time of {pid}', time.clock_gettime_ns, (~pid << 3) | 2)\n"
        "claims[:] = claims[:1] and ['the CPU time of other processes']",
        minor=True,
    ),
    Probe(
        "seed of the neighbour",
        "clocks and seeds",
        "for seed in itertools.chain(range(9999), {int(time.time()), os.getpid(), ZYGOTE}):\n"
        "    if random.Random(seed).getrandbits(48) == NEIGHBOUR_DREW:\n"
        "        claims.append(f'its seed is {seed}')\n"
        "if random.getrandbits(48) == NEIGHBOUR_DREW:\n    claims.append('we draw the same')",
    ),
]

SCRATCH = [
    Probe(
        "scratch of another session",
        "other sessions",
        """
        here = os.getcwd()
        for top in {here, os.path.dirname(here), NEIGHBOUR_SCRATCH, '/', '/tmp'}:
            for folder, folders, names in os.walk(top):
                if folder.startswith(('/proc', '/sys', '/usr', '/work')) or len(claims) > 9:
                    folders.clear()
                    continue
                for name in names:
                    try:
                        text = text_of(os.path.join(folder, name))
                    except OSError:
                        continue
                    claims.extend(re.findall(NEEDLE + '[0-9a-f]{32}', text))
        attempt('list', lambda: os.listdir(NEIGHBOUR_SCRATCH)[0])
        attempt('read', text_of, NEIGHBOUR_SCRATCH + '/diary')
        attempt('write', lambda: open(NEIGHBOUR_SCRATCH + '/diary', 'w').write('x'))
        attempt('remove', os.unlink, NEIGHBOUR_SCRATCH + '/diary')
        """,
        FILES,
    ),
    Probe(
        "full disk",
        "limits",
        """
        written, number, piece = 0, 0, b'x' * (1 << 20)
        try:
            while written < 4 * SCRATCH_BYTES:
                with open(f'fill-{number}', 'wb', buffering=0) as file:
                    number += 1
                    for _ in range(SCRATCH_BYTES // len(piece) - 1):
                        written += file.write(piece)
        except OSError:
            pass
        if written > SCRATCH_BYTES:
            time.sleep(0.7)  # who has too much is ended meanwhile
            claims.append(f'{written >> 20} MiB in a scratch of {SCRATCH_BYTES >> 20}')
        """,
        FILES,
        minor=True,
    ),
    Probe(
        "files without number",
        "limits",
        "made = 0\ntry:\n    for made in range(1000):\n        open(f'empty-{made}', 'w').close()\n"
        "    time.sleep(0.7)\n    claims.append(f'{made + 1} files')\nexcept OSError:\n    pass",
        FILES,
        minor=True,
    ),
    Probe(
        "traps for the janitor",
        "links",
        """
        try:
            for name in ('up', 'out'):
                os.symlink({'up': '..', 'out': FOLDER}[name], name)
        except OSError:
            pass
        for _ in range(300):
            try:
                os.mkdir('deep' * 40)
                os.chdir('deep' * 40)
            except OSError:
                break
        for index in range(50):
            try:
                os.mkdir(f'locked-{index}')
                open(f'locked-{index}/' + chr(10) * 9, 'w').close()
                os.chmod(f'locked-{index}', 0)
            except OSError:
                pass
        """,
        FILES,
    ),
    Probe(
        "large file",
        "limits",
        "def sparse():\n    with open('sparse', 'wb') as file:\n        file.truncate(1 << 40)\n"
        "attempt('sparse', sparse)",
        FILES,
    ),
    Probe(
        "devices and pipes in the scratch",
        "files outside",
        "attempt('device', os.mknod, 'device', 0o600 | stat.S_IFCHR, os.makedev(1, 5))\n"
        "attempt('block', os.mknod, 'block', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\n"
        "attempt('socket', lambda: socket.socket(socket.AF_UNIX).bind('socket'))\n"
        "with open('program', 'w') as file:\n    file.write('#!/bin/sh\\n')\n"
        "try:\n    os.chmod('program', 0o6755)\nexcept OSError:\n    pass\n"
        "attempt('run', os.posix_spawn, './program', ['x'], {})",
        FILES,
    ),
]

PROBES = [
    *(*ON_THE_MACHINE, *GATES, *RESOURCES, *OWN_PROCESS),
    *(*RUNNER, *FRAMES, *SESSIONS, *SCRATCH, *OWN_FILES),
]
"""Every probe; names are unique."""
