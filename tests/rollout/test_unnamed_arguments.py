"""Methods and constructors with `*args` and positional-only arguments, which JSON gives by name."""

from pathlib import Path

from rollout.chat.template import ChatTemplate
from tests.rollout.own_world import Row, answer, call, play, real_tools, tasks_in


async def test_methods_and_constructors_take_arguments_without_a_name(
    template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "bag.py").write_text(
        "class Bag:\n    def __init__(self, size: int, /, *things: str):\n"
        "        self.size, self.things = size, list(things)\n"
        "    def put(self, /, *things: str, **by: int):\n"
        "        self.things += things\n        return {'all': self.things, 'by': by}\n"
        "    @staticmethod\n    def same(thing, /): return thing\n"
        "    @classmethod\n    def name(cls, *parts: str): return [cls.__name__, *parts]\n"
    )
    place: Row = {"python": "bag.py", "arguments": {"size": 2, "things": ["a"]}}
    [task] = tasks_in(tmp_path, [{"answer": "x", "tools": place}])
    turns = [
        call("put", things=["b", "c"], cost=3.0),
        call("put"),
        call("same", thing=1),
        call("name", parts=["x"]),
    ]
    async with real_tools() as tools:
        episode = await play(tools, template, task, [*turns, answer("x")])
    assert [f"{made.status.value}: {made.result}" for made in episode.calls] == [
        'ok: {"all": ["a", "b", "c"], "by": {"cost": 3}}',
        'ok: {"all": ["a", "b", "c"], "by": {}}',
        "ok: 1",
        'ok: ["Bag", "x"]',
    ]
