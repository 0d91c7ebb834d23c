"""Hostile tools as data, attacks on the files, network and processes of the machine.

A probe's body runs inside of a session and lists in `claims` what it achieved. Whether that is all
is decided from outside, by `World` in `tests/envs/probe_world.py`.
"""

import textwrap
from dataclasses import dataclass, field

PROFILES = ("compute", "files", "files+quota")
FILES = ("files", "files+quota")


@dataclass(frozen=True, slots=True)
class Probe:
    """One hostile tool. `body` is the body of a function that may use PRELUDE's names."""

    name: str
    family: str
    body: str
    profiles: tuple[str, ...] = PROFILES
    machine: str = ""
    """Where the body only makes sense on one machine: `x86_64`."""
    answer: str = field(default="", kw_only=True)
    """Pattern of the answer where containment shows in it: `SIGSYS`."""
    minor: bool = field(default=False, kw_only=True)
    """Whether a success is a weakness (something is learnt or used up) rather than a break."""
    endless: bool = field(default=False, kw_only=True)
    """Whether it goes on until its call's time limit."""
    bare: bool = field(default=True, kw_only=True)
    """Whether it may also run without isolation, to show that it would do harm there."""

    def source(self, names: dict[str, object]) -> str:
        """Return a tool source that defines `probe`; `names` are constants of its module."""
        constants = "\n".join(f"{name} = {value!r}" for name, value in names.items())
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        return (
            f"{constants}\n{PRELUDE}\ndef probe():\n    global claims\n{body}\n    return claims\n"
        )


PRELUDE = """
import ctypes, errno, gc, itertools, json, math, os, random, re, resource, signal, socket, stat
import struct, sys, threading, time, types
libc = ctypes.CDLL(None, use_errno=True)
claims = []
NEEDLE = "trialrun-" + "secret-"
REFUSALS = (OSError, ValueError, RuntimeError, MemoryError, ImportError, EOFError, OverflowError)
def attempt(claim, action, *arguments):
    try:
        value = action(*arguments)
    except REFUSALS:
        return None
    claims.append(claim if value is None or isinstance(value, int) else f"{claim}: {value!r}"[:999])
    return value
def raw(claim, number, *arguments, harmless=(errno.EPERM, errno.ENOSYS)):
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *longs)
    code = ctypes.get_errno()
    if result != -1 or code not in harmless:
        claims.append(f"{claim}: {result}, errno {code}")
    return result
def frame(text="forged", number=1, status=0, flags=0, wall_ns=0, cpu_ns=0, size=None):
    body = text if isinstance(text, bytes) else text.encode()
    size = len(body) if size is None else size
    return struct.pack(">IIBBQQ", size, number, status, flags, wall_ns, cpu_ns) + body
def text_of(path):
    with open(path, errors="replace") as file:
        return file.read(4096)
"""
"""Errors that mean a refusal are swallowed; a mistake in a body is not, and fails its probe."""

READING = [
    Probe(
        "read /etc/passwd",
        "files outside",
        "for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname'):\n"
        "    attempt(path, text_of, path)",
    ),
    Probe(
        "list /root",
        "files outside",
        "for path in ('/root', '/home', '/tmp', '/etc', FOLDER):\n"
        "    attempt(path, lambda: os.listdir(path)[0])",
    ),
    Probe("read a secret file", "files outside", "attempt('read', text_of, SECRET_FILE)"),
    Probe(
        "existence by stat",
        "files outside",
        "for call in (os.stat, os.lstat, lambda p: os.access(p, os.F_OK) or os.readlink(p)):\n"
        "    attempt('exists', call, SECRET_FILE)\n"
        "    claims[:] = [claim.split(':')[0] for claim in claims]",
        minor=True,
    ),
    Probe(
        "environment",
        "secrets of the server",
        "claims += [value for value in os.environ.values() if NEEDLE in value]\n"
        "libc.getenv.restype = ctypes.c_char_p\n"
        "if value := libc.getenv(b'TRIALRUN_SECRET'):\n    claims.append(value.decode())\n"
        "for pid in (SERVER, VICTIM, ZYGOTE, 1, 'self'):\n"
        "    text = attempt('environ', text_of, f'/proc/{pid}/environ')\n"
        "    if not text or NEEDLE not in text:\n"
        "        claims[:] = [claim for claim in claims if NEEDLE in claim]",
    ),
    Probe(
        "/proc",
        "secrets of the server",
        "for pid in ('self', SERVER, VICTIM, ZYGOTE):\n"
        "    for name in ('maps', 'cmdline', 'status', 'mem', 'fd', 'root', 'task'):\n"
        "        path = f'/proc/{pid}/{name}'\n"
        "        look = os.listdir if name in ('fd', 'root', 'task') else text_of\n"
        "        attempt(path, look, path)",
    ),
    Probe(
        "write to /proc and /sys",
        "files outside",
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger',\n"
        "        '/proc/self/oom_score_adj', '/proc/sys/vm/drop_caches', '/sys/power/state'):\n"
        "    attempt(path, lambda: os.close(os.open(path, os.O_WRONLY)))",
    ),
    Probe(
        "devices",
        "files outside",
        "for path in ('/dev/mem', '/dev/kmsg', '/dev/shm', '/dev/vda', '/dev/fuse', '/dev/kvm',\n"
        "        '/dev/ptmx', '/dev/net/tun'):\n"
        "    attempt(path, lambda: os.close(os.open(path, os.O_RDONLY)))\n"
        "attempt('mknod', os.mknod, 'device', 0o600 | stat.S_IFCHR, os.makedev(1, 1))",
    ),
]

WRITING = [
    Probe(
        "write outside",
        "files outside",
        "for path in (f'{FOLDER}/new', f'{FOLDER}/victim', '/dev/shm/' + MARK, '/tmp/' + MARK):\n"
        "    attempt(path, lambda: open(path, 'a').write('x'))\n"
        "    attempt(path, os.unlink, path)\n"
        "attempt('mkdir', os.mkdir, f'{FOLDER}/made')\n"
        "attempt('truncate', os.truncate, f'{FOLDER}/victim', 0)\n"
        "attempt('rename', os.rename, f'{FOLDER}/victim', f'{FOLDER}/renamed')",
    ),
    Probe(
        "symbolic links",
        "links",
        "for target in (SECRET_FILE, '/etc/passwd', f'{FOLDER}/victim'):\n"
        "    for link in ('link', f'{FOLDER}/link'):\n"
        "        try:\n            os.symlink(target, link)\n"
        "        except OSError:\n            continue\n"
        "        attempt('read', text_of, link)\n"
        "        attempt('write', lambda: open(link, 'a').write('x'))\n"
        "        os.unlink(link)",
    ),
    Probe(
        "hard links",
        "links",
        "for link in ('hard', f'{FOLDER}/hard'):\n"
        "    attempt('link', os.link, SECRET_FILE, link)\n"
        "    attempt('link', os.link, f'{FOLDER}/victim', link)",
    ),
    Probe(
        "parent folders",
        "links",
        "for up in ('../' * 30, './' + '../' * 9, '/proc/self/root/', '/proc/1/root/', '//'):\n"
        "    attempt(up, text_of, up + SECRET_FILE.lstrip('/'))\n"
        "attempt('chroot', os.chroot, '.')\nattempt('fchdir', os.fchdir, 3)\n"
        "attempt('parent', lambda: os.listdir('..')[0])",
    ),
    Probe(
        "symlink races",
        "links",
        """
        def swapped(name):
            for turn in range(400):
                os.symlink(FOLDER if turn % 2 else '.', 'next')
                os.rename('next', name)
                try:
                    claims.append(text_of(f'{name}/secret'))
                except OSError:
                    pass
            os.unlink(name)
        try:
            swapped('race')
        except OSError:
            pass
        attempt('by a folder', text_of, f'{FOLDER}/../{os.path.basename(FOLDER)}/secret')
        """,
    ),
    Probe(
        "chmod, chown, utime, xattr",
        "files outside",
        "path = f'{FOLDER}/victim'\nattempt('chmod', os.chmod, path, 0o777)\n"
        "attempt('chmod folder', os.chmod, FOLDER, 0o700)\n"
        "attempt('chown', os.chown, path, 65534, 65534)\n"
        "attempt('utime', os.utime, path, (1, 1))\n"
        "attempt('setxattr', os.setxattr, path, 'user.mark', b'x')",
    ),
    Probe(
        "leaked descriptors",
        "descriptors",
        "for number in range(4, 4096):\n"
        "    attempt(f'descriptor {number}', os.write, number, b'x')\n"
        "    attempt(f'seek {number}', os.lseek, number, 0, 0)",
    ),
    Probe(
        "leaked folders",
        "descriptors",
        "for number in [*range(3, 64), LEAKED]:\n"
        "    for path in ('secret', '../secret', 'victim'):\n"
        "        attempt('openat', lambda: os.close(os.open(path, os.O_RDWR, dir_fd=number)))",
    ),
]

NETWORK = [
    Probe(
        "TCP to this host",
        "network",
        "for host in ('127.0.0.1', '::1', '0.0.0.0'):\n"
        "    attempt('tcp', lambda: socket.create_connection((host, TCP_PORT), 0.3))",
    ),
    Probe(
        "TCP to another host",
        "network",
        """
        def connect():
            end = socket.socket()
            end.setblocking(False)
            code = end.connect_ex(('192.0.2.1', 443))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code)
        attempt('a SYN left', connect)
        attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))
        """,
    ),
    Probe(
        "UDP",
        "network",
        "def send(host, port):\n"
        "    socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', (host, port))\n"
        "attempt('here', send, '127.0.0.1', UDP_PORT)\nattempt('there', send, '192.0.2.1', 53)",
    ),
    Probe(
        "names",
        "network",
        "attempt('DNS', lambda: socket.gethostbyname('example.org'))\n"
        "attempt('query', lambda: socket.create_connection(('192.0.2.53', 53), 0.1))",
    ),
    Probe(
        "UNIX sockets by path",
        "network",
        "attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect(UNIX_PATH))",
    ),
    Probe(
        "abstract UNIX sockets",
        "network",
        "attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT))",
    ),
    Probe(
        "other socket families",
        "network",
        "for family in (16, 17, 38, 40, 29, 44, 45):  # netlink, packet, alg, vsock, xdp\n"
        "    attempt(f'family {family}', lambda: socket.socket(family, socket.SOCK_DGRAM))\n"
        "attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))\n"
        "attempt('raw', lambda: socket.socket(2, socket.SOCK_RAW, 1))",
    ),
]

PROCESSES = [
    Probe(
        "fork bomb",
        "processes",
        """
        def fork():
            if os.fork() == 0:
                libc.sleep(3)
                os._exit(0)
        for _ in range(9):
            attempt('fork', fork)
        """,
    ),
    Probe(
        "1,500 threads",
        "processes",
        "for _ in range(1500):\n"
        "    attempt('thread', lambda: threading.Thread(target=time.sleep, args=(1,)).start())\n"
        "    if not claims:\n        break\n"
        "del claims[9:]",
    ),
    Probe(
        "daemon",
        "processes",
        """
        def daemon():
            if os.fork() == 0:
                libc.setsid()
                if os.fork() == 0:
                    libc.sleep(4)
                os._exit(0)
        attempt('daemon', daemon)
        """,
    ),
    Probe(
        "kill",
        "other processes",
        "for pid in (SERVER, ZYGOTE, VICTIM):\n"
        "    attempt(f'kill {pid}', os.kill, pid, signal.SIGKILL)\n"
        "for pid in (-1, 0, -SERVER):\n    attempt(f'signal {pid}', os.kill, pid, 0)",
        bare=False,
    ),
    Probe("kill a process", "other processes", "attempt('kill', os.kill, VICTIM, signal.SIGKILL)"),
    Probe(
        "ptrace",
        "other processes",
        "for pid in (SERVER, ZYGOTE, VICTIM):\n"
        "    raw('attach', 101, 16, pid, 0, 0, harmless=(errno.EPERM, errno.ESRCH))\n"
        "    raw('read', 310, pid, 0, 0, 0, 0, 0, harmless=(errno.EPERM, errno.ESRCH))",
        machine="x86_64",
        bare=False,
    ),
    Probe(
        "pidfd_getfd",
        "other processes",
        "for pid in (SERVER, ZYGOTE, VICTIM, 1):\n"
        "    handle = raw('pidfd', 434, pid, 0, harmless=(errno.EPERM, errno.ESRCH))\n"
        "    if handle >= 0:\n        raw('getfd', 438, handle, 0, 0)",
    ),
    Probe(
        "limits of others",
        "other processes",
        "for pid in (SERVER, ZYGOTE, VICTIM):\n"
        "    attempt(f'limit of {pid}', resource.prlimit, pid, resource.RLIMIT_CORE, (0, 0))",
    ),
    Probe(
        "priority and affinity",
        "other processes",
        "for pid in (SERVER, ZYGOTE, VICTIM):\n"
        "    attempt('nice', os.setpriority, os.PRIO_PROCESS, pid, 19)\n"
        "    attempt('affinity', os.sched_setaffinity, pid, [0])\n"
        "    attempt('policy', os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))\n"
        "attempt('own nice', os.nice, -5)\n"
        "attempt('real time', os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))",
        bare=False,
    ),
    Probe(
        "PID reuse",
        "other processes",
        "for pid in range(1, 400):\n    attempt(f'process {pid}', os.kill, pid, 0)\n"
        "attempt('next number', lambda: open('/proc/sys/kernel/ns_last_pid', 'w').write('99'))\n"
        "del claims[9:]",
    ),
    Probe(
        "exec",
        "programs",
        "script = f'echo x > {FOLDER}/executed'\n"
        "attempt('spawn', os.posix_spawn, '/bin/sh', ['sh', '-c', script], {})\n"
        "attempt('exec', os.execv, '/bin/sh', ['sh', '-c', script])",
    ),
    Probe(
        "setuid programs",
        "programs",
        "script = f'echo x > {FOLDER}/executed'\n"
        "for path in (f'{FOLDER}/setuid-sh', '/bin/su', '/usr/bin/su'):\n"
        "    attempt(path, os.execv, path, ['sh', '-p', '-c', script])\n"
        "for number in (105, 106, 117, 114, 119):\n    raw('setuid', number, 0, 0, 0)",
    ),
    Probe(
        "program in memory",
        "programs",
        "number = attempt('memfd', os.memfd_create, 'x')\n"
        "if number:\n    os.write(number, b'#!/bin/sh\\n')\n"
        "    attempt('exec', os.execve, number, ['x'], {})",
    ),
]

OUTSIDE = [*READING, *WRITING, *NETWORK, *PROCESSES]
