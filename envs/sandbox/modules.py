"""Tool sources inside a child: compiled in one child, executed in the children of sessions."""

import marshal
import sys
import types
from collections.abc import Callable, Sequence

CODE, FAILED = b"c", b"e"
"""First byte of what `compiled` returns."""


def error_text(error: BaseException) -> str:
    """Return `Type: message`, even if the exception's own methods are hostile."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:  # hostile __str__
        message = ""
    return f"{name}: {message}" if message else name


def compiled(source: bytes, number: int, limit_bytes: int) -> bytes:
    """Return CODE and the marshalled code of module `number`, or FAILED and the reason."""
    try:
        text = source.decode("utf-8", "surrogatepass")
        code = compile(text, f"<tool {number}>", "exec", dont_inherit=True)
        body = CODE + marshal.dumps(code)
    except BaseException as error:  # the compiler may raise almost any error
        return FAILED + error_text(error).encode("utf-8", "replace")[: limit_bytes - 1]
    if len(body) > limit_bytes:
        return FAILED + f"expected code of at most {limit_bytes} bytes, found {len(body)}".encode()
    return body


class ToolModules:
    """The modules of one session; each is executed at the first call of one of its tools."""

    def __init__(
        self,
        codes: Sequence[bytes],
        errors: dict[int, str],
        functions: Sequence[tuple[int, str]],
    ) -> None:
        self._codes = codes
        self._errors = errors
        self._functions = functions
        self._modules: dict[int, types.ModuleType] = {}
        self._objects: dict[tuple[int, str], object] = {}

    def find(self, tool: int) -> Callable[..., object]:
        """Return the function that implements tool number `tool`.

        Raises ImportError, NameError, or what the constructor of the tool's class raises.
        """
        module, name = self._functions[tool]
        class_name, _, method = name.rpartition(".")
        if class_name:
            found = getattr(self._object(module, class_name), method, None)
        else:
            found = getattr(self._module(module), name, None)
        if not callable(found):
            kind = f"method {method} of class {class_name}" if class_name else f"function {name}"
            raise NameError(f"the tool's source defines no {kind}")
        return found

    def _object(self, module: int, class_name: str) -> object:
        if (module, class_name) not in self._objects:
            made = getattr(self._module(module), class_name, None)
            if not callable(made):
                raise NameError(f"the tool's source defines no class {class_name}")
            self._objects[module, class_name] = made()
        return self._objects[module, class_name]

    def _module(self, number: int) -> types.ModuleType:
        if number not in self._modules and number not in self._errors:
            name = f"tool_{number}"
            module = sys.modules[name] = types.ModuleType(name)
            try:
                exec(marshal.loads(self._codes[number]), module.__dict__)
                self._modules[number] = module
            except BaseException as error:  # a source may raise anything while it is executed
                self._errors[number] = error_text(error)
        if number in self._errors:
            raise ImportError(f"the tool could not be loaded: {self._errors[number]}")
        return self._modules[number]
