from pathlib import Path

from hpctrain import roots


def test_roots_are_remembered_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    roots.remember(tmp_path)
    roots.remember(tmp_path)
    assert roots.known() == [tmp_path]
    assert (tmp_path / "state" / "hpctrain" / "roots").read_text() == f"{tmp_path}\n"


def test_a_home_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    roots.remember(Path("/somewhere"))


def test_a_user_without_a_home_costs_nothing(tmp_path, monkeypatch):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    roots.remember(Path("/somewhere"))
    assert roots.known() == []
