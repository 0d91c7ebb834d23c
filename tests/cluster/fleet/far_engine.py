"""An engine, made on a worker's node, that takes weights only from a folder of that node."""

from pathlib import Path

from envs.errors import WeightSyncError
from rollout.chat.template import ChatTemplate
from rollout.engine import Engine
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.weights.manifest import WeightManifest, checksum

FACTORY = f"{__name__}:make_engine"
FOLDER = "far"


class FarEngine(ScriptedEngine):
    """Verifies what it loads; vLLM's part ends where this one begins."""

    async def load_weights(self, manifest: WeightManifest) -> None:
        path = Path(manifest.path)
        if path.parent.parent.name != FOLDER:
            raise WeightSyncError(f"expected a file in {FOLDER}, found {path}")
        try:
            found = checksum(memoryview(path.read_bytes()))
        except OSError as error:
            raise WeightSyncError(f"cannot read {path}: {error}") from error
        if found != manifest.checksum:
            raise WeightSyncError(f"expected checksum {manifest.checksum}, found {found}")
        await super().load_weights(manifest)


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    del spec
    return FarEngine(lambda messages, seed: "<answer>1</answer>", template)
