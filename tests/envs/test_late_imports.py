"""Late imports return what they name and leave garbage collection as it was."""

import gc
import json

import pytest

from envs.late_imports import import_late


@pytest.mark.parametrize("collects", [True, False])
def test_a_module_or_an_object_is_returned(collects: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        assert import_late("json.decoder") is json.decoder
        assert import_late("json:loads") is json.loads
        with pytest.raises(ImportError):
            import_late("no_such_module.at_all")
        with pytest.raises(AttributeError):
            import_late("json:no_such_name")
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was else gc.disable)()
