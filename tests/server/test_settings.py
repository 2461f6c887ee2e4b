"""Where settings come from, which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfield_server.settings import SettingsError, ignored_variables, load_settings

TOML = """
port = 8001
api_keys = ["from-the-file"]

[limits]
max_points = 500

[admission]
searches = 3
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "nearfield.toml"
    path.write_text(TOML)
    return path


def test_defaults_are_loopback_and_bounded() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.has_keys) == ("127.0.0.1", 7333, False)
    assert settings.limits.max_body_bytes == 64 * 1024 * 1024
    assert settings.admission.search_queue == 64
    assert settings.shutdown_grace == 10.0


def test_file_then_environment_then_arguments(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(toml).port == 8001
    monkeypatch.setenv("NEARFIELD_PORT", "8002")
    assert load_settings(toml).port == 8002
    assert load_settings(toml, port=8003).port == 8003
    assert load_settings(toml, port=None).port == 8002


def test_nested_environment_merges_with_the_file(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARFIELD_LIMITS__MAX_K", "77")
    limits = load_settings(toml).limits
    assert (limits.max_k, limits.max_points) == (77, 500)


def test_file_named_by_the_environment(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARFIELD_CONFIG", str(toml))
    assert load_settings().admission.searches == 3


def test_keys_from_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARFIELD_API_KEYS", "first-key, second-key")
    keys = [key.get_secret_value() for key in load_settings().api_keys]
    assert keys == ["first-key", "second-key"]


def test_keys_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARFIELD_API_KEYS", "very-secret")
    assert "very-secret" not in repr(load_settings())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"port": 70_000}, "port"),
        ({"port": "many"}, "port"),
        ({"log_format": "xml"}, "log_format"),
        ({"limits": {"max_points": 0}}, "limits.max_points"),
        ({"limits": {"max_pionts": 5}}, "limits.max_pionts"),
        ({"colour": "red"}, "colour"),
        ({"api_keys": ["short"]}, "api_keys"),
        ({"api_keys": ["with a space in it"]}, "api_keys"),
    ],
)
def test_faults_name_the_setting(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(**arguments)


def test_faults_say_what_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = {"kind": "tei", "url": "http://localhost", "max_bach": 4}
    given: dict[str, object] = {"device": "gpu", "limits": {"max_kk": 5}, "scorers": {"r": scorer}, "prot": 1}
    with pytest.raises(SettingsError) as caught:
        load_settings(**given)
    lines = sorted(str(caught.value).splitlines())
    assert lines[0] == "device: must be auto, cpu or cuda:N, as cuda:0"
    assert lines[1].startswith("limits.max_kk: no such setting; did you mean max_k? known are max_body_bytes, max_hea")
    assert lines[2].startswith("prot: no such setting; did you mean port? known are data, host, port")
    assert lines[3].startswith("scorers.r.max_bach: no such setting; did you mean max_batch? known are kind, url")
    with pytest.raises(SettingsError, match=r"^api_keys: a key is at least 8"):
        load_settings(api_keys=["short"])
    monkeypatch.setenv("NEARFIELD_LIMITS__MAX_KK", "3")
    with pytest.raises(SettingsError, match=r"limits\.max_kk: no such setting; did you mean max_k"):
        load_settings()


def test_a_variable_that_is_no_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(ignored_variables())  # of whoever runs the tests
    for name in ("PROT", "MAX_K", "LIMIT__MAX_K", "PORT", "LIMITS__MAX_K", "URL", "SERVICE_HOST", "PORT_7333_TCP"):
        monkeypatch.setenv(f"NEARFIELD_{name}", "3")
    assert sorted(set(ignored_variables()) - known) == [
        "NEARFIELD_LIMIT__MAX_K is no setting and is ignored; did you mean NEARFIELD_LIMITS?",
        "NEARFIELD_MAX_K is no setting and is ignored",
        "NEARFIELD_PROT is no setting and is ignored; did you mean NEARFIELD_PORT?",
    ]


def test_faulty_keys_are_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(api_keys=["my secret"])
    assert "my secret" not in str(caught.value)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no configuration file at .*nowhere"):
        load_settings(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1")
    with pytest.raises(SettingsError):
        load_settings(broken)
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("prot = 1")
    with pytest.raises(SettingsError, match="prot"):
        load_settings(unknown)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.53"])
def test_loopback_needs_no_key(host: str) -> None:
    load_settings(host=host).check_exposure()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_elsewhere_needs_a_key_or_insecure(host: str) -> None:
    with pytest.raises(SettingsError, match="refusing to listen"):
        load_settings(host=host).check_exposure()
    load_settings(host=host, insecure=True).check_exposure()
    load_settings(host=host, read_api_keys=["a-read-key"]).check_exposure()
