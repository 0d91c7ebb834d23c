"""The frames on a child's socket.

A request is its length and a body: one line of JSON, and for some requests raw bytes after it. A
reply is a header of fixed size and a text. A child may be in the hands of a hostile tool, so the
server reads numbers at fixed places and nothing that it would have to parse. Standard library only.
"""

import struct

REQUEST = struct.Struct(">I")
"""Bytes of the body."""
REPLY = struct.Struct(">IIBBQQ")
"""Bytes of the text, number of the call, status, flags, and nanoseconds of wall and of CPU time."""
OK, FAILED = 0, 1
"""The statuses."""
TRUNCATED = 1
"""The one flag: the text was cut."""
