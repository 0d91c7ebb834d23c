"""Calls of a simulated API in this process: its source is of our own making."""

import random
from collections.abc import Callable

from envs.tools import ToolSet

Calls = Callable[..., object]


def simulation(tool_set: ToolSet, seed: int = 1) -> Calls:
    """Run a simulation's source here, for it is of our own making, as a session would."""
    namespace: dict = {"__name__": "simulation"}
    exec(compile(tool_set.sources[0], "<simulation>", "exec"), namespace)
    random.seed(seed)
    simulated = namespace["Simulation"]()
    methods = {
        tool.name: getattr(simulated, function.removeprefix("Simulation."))
        for tool, function in zip(tool_set.tools, tool_set.functions, strict=True)
    }

    def call(name: str, /, **arguments: object) -> object:
        try:
            return methods[name](**arguments)
        except Exception as error:
            if type(error).__name__ != "ApiError":
                raise
            return str(error)

    return call
