import pytest

from spinup import user_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs each test in an empty folder, with a folder in it for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(user_config, "DEFAULT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path
