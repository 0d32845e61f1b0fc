"""What several test files share: where the development data lies, if it is there at all."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# The tensors here are tiny: more threads would only wait for each other, and on a busy machine for very long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it

# Ray's raylet gives up when the processes that it starts are slow, as on a busy machine.
os.environ.setdefault("RAY_agent_register_timeout_ms", "60000")

# No deadlines: tests say what is right, never how fast.
settings.register_profile("raycap", deadline=None)
settings.load_profile("raycap")


def _present(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(
            f"no development data at {folder}: set RAYCAP_DATA to the folder that holds it"
        )
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and captions (flickr8k, coco-mini, ...), never needed to use raycap."""
    return _present(Path(os.environ.get("RAYCAP_DATA", REPOSITORY.parent / "shared" / "data")))


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """Real pretrained backbones, beside the data."""
    return _present(shared_data.parent / "weights")
