"""Folders, sizes and the config file."""

import platformdirs
import pytest

from logo_local import config
from logo_local.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * 2**20),
        ("512m", 512 * 2**20),
        ("2G", 2 << 30),
        ("2GB", 2 << 30),
        ("2GiB", 2 << 30),
        (" 2 gib ", 2 << 30),
        ("1.5K", 1536),
        ("100", 100),
        ("100B", 100),
        ("1T", 1 << 40),
        (4096, 4096),
    ],
)
def test_sizes(text, size):
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "0G", "1X", "1 2M", "1e9", "one", True, "½G"])
def test_what_is_not_a_size(text):
    with pytest.raises(ValueError, match="write it like 512M or 2G"):
        config.parse_size(text)


def test_home_holds_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "home"))
    assert config.cache_dir() == tmp_path / "home" / "cache"
    assert config.config_file() == tmp_path / "home" / "config.toml"
    assert not (tmp_path / "home").exists()


def test_home_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LOGO_LOCAL_HOME", "~/logo")
    assert config.cache_dir() == tmp_path / "logo" / "cache"


@pytest.mark.parametrize("unset", ["absent", "empty"])
def test_without_home_the_platform_decides(monkeypatch, unset):
    if unset == "absent":
        monkeypatch.delenv("LOGO_LOCAL_HOME", raising=False)
    else:
        monkeypatch.setenv("LOGO_LOCAL_HOME", "")
    assert str(config.cache_dir()) == platformdirs.user_cache_dir("logo-local", False)
    assert config.config_file().parent.name == "logo-local"


# The config file


def integer(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it must be a number")
    return value


CHECKS = {"top_k": integer, "signal": str.lower}


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load_config_file(path, CHECKS)

    return load


def test_no_file_is_no_settings(tmp_path):
    assert config.load_config_file(tmp_path / "config.toml", CHECKS) == {}


def test_names_with_hyphens_and_underscores(load):
    assert load('top-k = 5\nsignal = "NORM"') == {"top_k": 5, "signal": "norm"}
    assert load("top_k = 5") == {"top_k": 5}
    assert load("") == {}


def test_every_problem_is_named_at_once(load):
    with pytest.raises(SettingsError) as caught:
        load('topk = 5\ntop-k = "many"\ncolour = "red"')
    assert caught.value.problems == (
        "unknown setting topk = 5 (did you mean top-k?)",
        "top-k = 'many': it must be a number",
        "unknown setting colour = 'red'",
    )
    assert caught.value.hint == "the settings are: signal, top-k"
    assert "config.toml cannot be used" in caught.value.message


def test_one_setting_in_two_spellings(load):
    with pytest.raises(SettingsError, match="top_k is set twice"):
        load("top-k = 5\ntop_k = 6")


@pytest.mark.parametrize("text", ["top-k 5", "= 5", b"\xff\xfe", "signal = norm"])
def test_what_is_not_toml(load, text):
    with pytest.raises(SettingsError, match="is not TOML"):
        load(text)


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        config.load_config_file(tmp_path / "config.toml", CHECKS)
