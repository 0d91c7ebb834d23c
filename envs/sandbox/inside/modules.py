"""Tool sources inside a child: compiled in one child, executed in the children of sessions."""

import importlib
import marshal
import sys
import types
from collections.abc import Callable, Sequence

from envs.sandbox.inside.fitting import invoked
from envs.sandbox.inside.frames import FAILED, OK
from envs.sandbox.inside.siblings import add_finder, place_files


def error_text(error: BaseException) -> str:
    """Return `Type: message`, even if the exception's own methods are hostile."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:  # hostile __str__
        message = ""
    return f"{name}: {message}" if message else name


def compiled(source: bytes, number: int, limit_bytes: int) -> tuple[int, bytes]:
    """Return OK and the marshalled code of module `number`, or FAILED and the reason."""
    try:
        text = source.decode("utf-8", "surrogatepass")
        code = compile(text, f"<tool {number}>", "exec", dont_inherit=True)
        body = marshal.dumps(code)
    except BaseException as error:  # the compiler may raise almost any error
        return FAILED, error_text(error).encode("utf-8", "replace")[:limit_bytes]
    if len(body) > limit_bytes:
        return FAILED, f"expected code of at most {limit_bytes} bytes, found {len(body)}".encode()
    return OK, body


class ToolModules:
    """The modules of one session; each is executed at the first call of one of its tools, or when
    another one imports it.
    """

    def __init__(self, request: dict, codes: Sequence[bytes], scratch: str = "") -> None:
        """`request` is that of `CompiledTools.start`; `scratch` is the session's folder, if any."""
        self._codes = codes
        self._errors = {int(number): text for number, text in request["errors"].items()}
        self._functions: Sequence[tuple[int, str]] = request["functions"]
        self._setup: dict[str, dict[str, object]] = request.get("setup", {})
        self._numbers: dict[str, int] = request.get("modules", {})
        self._names = {number: name for name, number in self._numbers.items()}
        self._modules: dict[int, types.ModuleType] = {}
        self._objects: dict[tuple[int, str], object] = {}
        if self._numbers:
            root = place_files(request.get("files", {}), scratch)
            add_finder(list(self._numbers), self._code_of, root)

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

    def state(self) -> dict[str, object]:
        """Return the object of each class, and the variables of each module of functions, by name.

        An object with a method `_state` is what that returns. Raises what `find` raises.
        """
        found: dict[str, object] = {}
        for number, name in dict.fromkeys((module, name) for module, name in self._functions):
            class_name = name.rpartition(".")[0]
            if class_name:
                made = self._object(number, class_name)
                own = getattr(made, "_state", None)
                found[class_name] = own() if callable(own) else made
            else:
                module = self._module(number)
                found[module.__name__] = _variables(module)
        return found

    def _object(self, module: int, class_name: str) -> object:
        if (module, class_name) not in self._objects:
            made = getattr(self._module(module), class_name, None)
            if not callable(made):
                raise NameError(f"the tool's source defines no class {class_name}")
            given = self._setup.get(class_name, {})
            self._objects[module, class_name] = invoked(made, given)
        return self._objects[module, class_name]

    def _module(self, number: int) -> types.ModuleType:
        if number not in self._modules and number not in self._errors:
            try:
                self._modules[number] = self._executed(number)
            except BaseException as error:  # a source may raise anything while it is executed
                self._errors[number] = error_text(error)
        if number in self._errors:
            raise ImportError(f"the tool could not be loaded: {self._errors[number]}")
        return self._modules[number]

    def _executed(self, number: int) -> types.ModuleType:
        if number in self._names:
            return importlib.import_module(self._names[number])
        name = f"tool_{number}"
        module = sys.modules[name] = types.ModuleType(name)
        exec(marshal.loads(self._codes[number]), module.__dict__)
        return module

    def _code_of(self, name: str) -> bytes:
        number = self._numbers[name]
        if number in self._errors:
            raise ImportError(f"{name}: {self._errors[number]}")
        return self._codes[number]


def _variables(module: types.ModuleType) -> dict[str, object]:
    """Return what a module holds, without what it defines or imports."""
    kinds = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)
    return {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("__") or isinstance(value, kinds))
        and not hasattr(value, "__origin__")
        and type(value).__module__ != "typing"
    }
