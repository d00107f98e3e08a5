from pathlib import Path

from spinup import user_config


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("SPINUP_DATA_DIR", raising=False)
    checkout = Path(user_config.__file__).parents[1]
    assert user_config.default_data_dir() == str(checkout / "data")
    installed = tmp_path / "site-packages" / "spinup" / "user_config.py"
    monkeypatch.setattr(user_config, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    assert user_config.default_data_dir() == str(tmp_path / "data")
    monkeypatch.setenv("SPINUP_DATA_DIR", "elsewhere")
    assert user_config.default_data_dir() == str(tmp_path / "elsewhere")
