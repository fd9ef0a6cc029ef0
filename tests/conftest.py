import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["toy_lens"]

# Continuous integration draws the same examples every time; whoever runs the tests by hand searches further.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and pictures: WHYLENS_SHARED/data, or shared/data next to the repository."""
    root = os.environ.get("WHYLENS_SHARED")
    folder = (Path(root) if root else Path(__file__).resolve().parents[2] / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set WHYLENS_SHARED to the folder that holds data/)")
    return folder
