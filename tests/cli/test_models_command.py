"""`openmedlab models`: what a user types, reads and gets as exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flaky_server as server_that
import pytest
from model_files import save_medlam

from napari_openmedlab.cli import models as command
from napari_openmedlab.models import catalogue
from napari_openmedlab.models.checkpoints.settings import FOLDER_VARIABLE, read_settings
from napari_openmedlab.models.checkpoints.store import ModelStore


@pytest.fixture(scope="module")
def medlam(tmp_path_factory) -> Path:
    return save_medlam(tmp_path_factory.mktemp("published") / "medlam.pth")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The model folder of the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def models(openmedlab):
    """Return a function that runs ``openmedlab models ...``."""
    return lambda *arguments: openmedlab("models", *arguments)


@pytest.fixture
def imported(models, medlam) -> None:
    done = models("import", medlam)
    assert done.code == 0, done.err


def words(text: str) -> str:
    """Return a text as if lines were not broken and boxes not drawn."""
    return " ".join(text.replace("│", " ").split())


def test_list_shows_the_catalogue_and_how_to_get_each(models, folder):
    done = models("list")
    assert done.code == 0
    for spec in catalogue.checkpoints():
        assert spec.id in done.out
    for said in ("download", "browser", "not stated", "contradictory", str(folder)):
        assert said in done.out
    assert not folder.exists()


def test_import_then_list_show_path_verify_and_remove(models, medlam, folder):
    done = models("import", medlam)
    assert done.code == 0
    assert "Imported: medlam (medlam)" in done.out
    here = models("list", "--here")
    assert "ready" in here.out
    assert "stu-net" not in here.out
    shown = words(models("show", "medlam").out)
    for said in ("CC BY-NC 4.0", "ready", "from medlam.pth", "take it as not allowed"):
        assert said in shown
    path = Path(models("path", "medlam").out.strip())
    assert path.parent == folder
    assert path.is_file()
    assert models("path").out.strip() == str(folder)
    assert "sound    medlam" in models("verify").out
    assert models("remove", "medlam", "--yes").code == 0
    assert not path.exists()
    assert models("path", "medlam").code == 2


def test_lists_as_json(models, imported, folder):
    rows = json.loads(models("list", "--json").out)
    by_name = {row["name"]: row for row in rows}
    assert by_name["medlam"]["state"] == "ready"
    assert by_name["medlam"]["here"] is True
    assert by_name["stu-net-b"]["state"] == "download"
    (shown,) = json.loads(models("show", "medlam", "--json").out)
    assert shown["catalogue"]["id"] == "medlam"
    assert Path(shown["stored"]["path"]).parent == folder
    assert len(shown["stored"]["sha256"]) == 64
    (absent,) = json.loads(models("show", "fmunet", "--json").out)
    assert absent["stored"] is None


@pytest.mark.parametrize("arguments", [("show", "medlm"), ("verify", "medlm"), ("path", "medlm"),
                                       ("remove", "medlm", "--yes"), ("download", "medlm"),
                                       ("import", "absent.pth")])  # fmt: skip
def test_a_wrong_name_is_bad_input(models, arguments):
    done = models(*arguments)
    assert done.code == 2
    assert "medlm" in done.err or "absent.pth" in done.err


def test_a_file_that_is_no_checkpoint_is_bad_input_and_leaves_nothing(models, folder, tmp_path):
    wrong = tmp_path / "page.pth"
    wrong.write_text("<html>please log in</html>", encoding="utf-8")
    done = models("import", wrong)
    assert done.code == 2
    assert "web page" in done.err
    assert not list(folder.glob("*.json"))


def test_damage_is_found_listed_and_has_its_own_exit_code(models, imported, folder):
    path = ModelStore(folder).path("medlam")
    with path.open("r+b") as file:
        file.seek(10**6)
        file.write(b"damage")
    done = models("verify")
    assert done.code == 1
    assert "damaged  medlam" in done.err
    assert "Import the published file again" in models("list", "--here").out


def test_names_and_kinds_can_be_given(models, medlam):
    done = models("import", medlam, "--name", "My MedLAM", "--as", "medlam")
    assert "Imported: my-medlam" in done.out
    assert models("import", medlam, "--as", "fmunet").code == 2
    assert models("import", medlam, medlam, "--name", "x").code == 2


def test_a_file_that_fits_two_networks_asks_which(models, medlam, monkeypatch):
    from napari_openmedlab.models.checkpoints import loading
    from napari_openmedlab.models.checkpoints.identify import AmbiguousCheckpoint

    def ambiguous(source, *_args):
        raise AmbiguousCheckpoint("x.pth fits two", source, ("sam-vit-b", "medsam"))

    monkeypatch.setattr(loading, "convert", ambiguous)
    done = models("import", medlam)
    assert done.code == 2
    assert "--as sam-vit-b or --as medsam" in done.err


# -- downloads ---------------------------------------------------------------------------------


@pytest.fixture
def published(medlam, monkeypatch):
    """MedLAM with a direct link to a server on this machine."""
    with server_that.serving(medlam.read_bytes()) as server:
        spec = replace(
            catalogue.get_checkpoint("medlam"), how="direct", url=f"{server.url}/medlam.pth"
        )
        monkeypatch.setattr(catalogue, "get_checkpoint", lambda _name: spec)
        yield server


def test_nothing_is_fetched_before_the_licence_is_accepted(models, published):
    done = models("download", "medlam")
    assert done.code == 2
    assert "CC BY-NC 4.0" in done.out
    assert "--accept-licence" in words(done.err)
    assert published.asked == []


def test_the_licence_is_asked_for_at_a_terminal(models, published, monkeypatch):
    monkeypatch.setattr(command, "_can_ask", lambda: True)
    monkeypatch.setattr(command.typer, "confirm", lambda *_a, **_k: False)
    done = models("download", "medlam")
    assert done.code == 1
    assert "not accepted" in done.err
    assert published.asked == []
    monkeypatch.setattr(command.typer, "confirm", lambda *_a, **_k: True)
    assert models("download", "medlam").code == 0
    assert len(published.asked) == 1


def test_download_fetches_imports_and_does_not_fetch_again(models, published, folder):
    published.script = [server_that.dropping(0.5), server_that.ok]
    done = models("download", "medlam", "--accept-licence")
    assert done.code == 0, done.err
    assert "Ready: medlam" in done.out
    assert ModelStore(folder).get("medlam").checkpoint == "medlam"
    assert models("download", "medlam", "--accept-licence").code == 0
    assert len(published.asked) == 2


def test_a_refusing_server_is_a_failure(models, published):
    published.script = [server_that.status(403)]
    done = models("download", "medlam", "--accept-licence")
    assert done.code == 1
    assert "403" in done.err
    assert "drive.google.com" in done.err


def test_a_half_way_download_is_listed_and_can_be_removed(models, published, folder):
    published.script = [server_that.dropping(0.5), server_that.status(404)]
    assert models("download", "medlam", "--accept-licence").code == 1
    assert "partly (30.1 MB)" in models("list").out
    assert models("remove", "medlam", "--yes").code == 0
    assert "partly" not in models("list").out
    assert not list((folder / ".downloads").glob("*/*"))


def test_a_proxy_can_be_given_for_once(models, published, monkeypatch):
    spec = replace(catalogue.get_checkpoint("medlam"), url="http://models.invalid/medlam.pth")
    monkeypatch.setattr(catalogue, "get_checkpoint", lambda _name: spec)
    done = models("download", "medlam", "--accept-licence", "--proxy", published.url)
    assert done.code == 0, done.err
    assert published.asked[0][0] == "http://models.invalid/medlam.pth"
    assert read_settings().proxy == ""
    assert models("download", "medlam", "--accept-licence", "--proxy", "nonsense").code == 2


def test_a_checkpoint_without_a_link_says_how_to_get_it(models):
    done = models("download", "medlam", "--accept-licence")
    assert done.code == 1
    for said in ("https://drive.google.com/", "save medlam.pth", "models import FILE --as medlam"):
        assert said in done.out


# -- bundles, settings, the rest ---------------------------------------------------------------


def test_a_bundle_goes_to_another_folder(models, imported, tmp_path, monkeypatch):
    done = models("bundle", tmp_path / "b.zip")
    assert done.code == 0, done.err
    assert "Written" in done.out
    assert "CC BY-NC 4.0" in done.out
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "offline"))
    assert "Imported: medlam" in models("import", tmp_path / "b.zip").out
    assert models("verify").code == 0
    assert models("import", tmp_path / "b.zip", "--name", "x").code == 2


def test_an_empty_folder_makes_no_bundle(models, tmp_path):
    done = models("bundle", tmp_path / "b.zip")
    assert done.code == 2
    assert "download or import one first" in done.err


def test_removing_asks_first(models, imported, folder, monkeypatch):
    done = models("remove", "medlam")
    assert done.code == 2
    assert "--yes" in words(done.err)
    monkeypatch.setattr(command, "_can_ask", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert models("remove", "medlam").code == 1
    assert ModelStore(folder).get("medlam")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert models("remove", "medlam").code == 0
    assert ModelStore(folder).entries() == ()


def test_settings_are_shown_kept_and_checked(models, folder, tmp_path):
    assert str(folder) in models("settings").out
    done = models("settings", "--mirror", "https://mirror.org/hf", "--proxy", "http://p:8080")
    assert done.code == 0
    assert (read_settings().mirror, read_settings().proxy) == (
        "https://mirror.org/hf",
        "http://p:8080",
    )
    assert "https://mirror.org/hf" in models("settings").out
    assert models("settings", "--mirror", "mirror.org").code == 2
    models("settings", "--mirror", "")
    assert read_settings().mirror == ""
    fixed = models("settings", "--folder", tmp_path / "other")
    assert "goes before the folder chosen here" in words(fixed.out)


def test_models_can_be_moved_with_the_folder(models, medlam, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert models("settings", "--folder", tmp_path / "one").code == 0
    assert models("import", medlam).code == 0
    done = models("settings", "--folder", tmp_path / "two", "--move")
    assert done.code == 0, done.err
    assert "Moved: medlam" in done.out
    assert models("path").out.strip() == str(tmp_path / "two")
    assert models("verify").code == 0
    assert models("settings", "--move").code == 2


def test_help_and_lists_load_neither_torch_nor_a_web_client(folder):
    code = (
        "import sys; from napari_openmedlab.cli.main import run; run(['models', 'list']); "
        "assert not {'torch', 'requests', 'napari', 'qtpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
