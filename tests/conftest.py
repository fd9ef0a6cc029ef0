import os
from pathlib import Path

import pytest

pytest_plugins = ["toy_lens"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and pictures: WHYLENS_SHARED/data, or shared/data next to the repository."""
    root = os.environ.get("WHYLENS_SHARED")
    folder = (Path(root) if root else Path(__file__).resolve().parents[2] / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set WHYLENS_SHARED to the folder that holds data/)")
    return folder
