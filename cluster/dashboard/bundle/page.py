"""The dashboard's pages as one HTML file that needs no server and no network.

The modules are the ones that the server serves, each as a `data:` address behind a name of the
page's import map; nothing of them is compiled. The answers are compressed and written in base64:
no text of an episode stands in the page as such. The page's policy allows its own script and
styles by their hashes, and no markup made of text.
"""

import base64
import gzip
import hashlib
import json
import posixpath
import re
from pathlib import Path
from urllib.parse import quote

from pydantic import JsonValue

STATIC = Path(__file__).parents[1] / "static"
_STYLES = ("css/app.css", "css/episodes.css", "css/narrow.css", "vendor/uplot.css")
_PREFIX = "trialrun/"
_ICON = "/static/icon.svg"
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*\(?\s*)(["'`])(\.{1,2}/[^"'`]+)\2""")
"""An import of a neighbour: by name, for its effect, or when it is needed."""


def html_of(content: JsonValue, title: str) -> str:
    """Return the page that shows `content`, a `Kept` of core/snapshot.js."""
    names = json.dumps({"imports": _modules()}, sort_keys=True)
    start = f'import "{_PREFIX}app.js";'
    styles = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in _STYLES)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of(names)} {_hash_of(start)} data:",
            f"style-src {_hash_of(styles)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="content-security-policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_escaped(title)}</title>
<link rel="icon" href="{_icon()}">
<style>{styles}</style>
<script type="importmap">{names}</script>
</head>
<body>
<div id="app"><p class="boot">trialrun</p></div>
<noscript>These pages need JavaScript.</noscript>
<script type="text/plain" id="snapshot">{_packed(content)}</script>
<script type="module">{start}</script>
</body>
</html>
"""


def _modules() -> dict[str, str]:
    """Return the address of every module by its name."""
    found = {}
    for path in sorted(STATIC.rglob("*.js")):
        name = path.relative_to(STATIC).as_posix()
        source = _IMPORT.sub(
            lambda match, name=name: _renamed(match, name), path.read_text(encoding="utf-8")
        ).replace(_ICON, _icon())
        found[_PREFIX + name] = _address(source.encode(), "text/javascript")
    return found


def _renamed(match: "re.Match[str]", name: str) -> str:
    before, mark, target = match.groups()
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return f"{before}{mark}{_PREFIX}{whole}{mark}"


def _icon() -> str:
    return _address((STATIC / "icon.svg").read_bytes(), "image/svg+xml")


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _packed(content: JsonValue) -> str:
    whole = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(whole.encode(), 6, mtime=0)).decode()


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def key_of(path: str, **parameters: str | int | list[str]) -> str:
    """Return the name of an answer, as core/snapshot.js makes it of a request."""
    given = [
        f"{name}={quote(value, safe=_UNRESERVED)}"
        for name in sorted(parameters)
        for value in _listed(parameters[name])
    ]
    return f"{path}?{'&'.join(given)}" if given else path


_UNRESERVED = "!'()*-._~"
"""What encodeURIComponent leaves as it is."""


def _listed(value: str | int | list[str]) -> list[str]:
    return value if isinstance(value, list) else [str(value)]
