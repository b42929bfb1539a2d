"""Failed requests to the Hub: one sentence names the repository and what to do, and nothing is lost."""

import json
import socket

import pytest
from hub_server import Handler, serve
from huggingface_hub import HfApi, utils
from loopback import TOKENS, read, use_hub

from hf_calib import load_calibrator
from hf_calib.cli.main import main
from hf_calib.hub.repository import Repository, download


@pytest.fixture(autouse=True)
def patient_but_quick(monkeypatch):
    """The clients try a dead server six times, with seconds in between: here they do not wait."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def failed(call, capsys, status=2) -> str:
    capsys.readouterr()
    assert main(call) == status
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("hf-calib ")]
    assert "Traceback" not in error and error.rstrip().endswith(line)  # one line, the last
    return line


def test_who_may_not(hub, example, monkeypatch, capsys):
    assert main(example.call("alice/mine")) == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub does not know this token; log in with `hf auth login`" in failed(
        example.call("alice/mine"), capsys
    )
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(utils._auth, "_get_token_from_file", lambda: None)
    assert "hf auth login" in failed(example.call("alice/mine"), capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert "may not write to alice" in failed(example.call("alice/new"), capsys)  # there is none
    assert "or propose the change with --create_pr" in failed(
        example.call("alice/mine"), capsys, status=1
    )  # there is one


def test_what_is_not_there(hub, api, example, monkeypatch, capsys):
    assert "alice/nowhere: no such repository with this token" in failed(["verify", "alice/nowhere"], capsys)
    api.create_repo("alice/plain")
    api.upload_folder(repo_id="alice/plain", folder_path=example.folder / "model")
    assert "alice/plain has no results.json" in failed(["verify", "alice/plain"], capsys)
    assert "has no revision 'v9'" in failed(["verify", "alice/plain", "--revision", "v9"], capsys)
    with pytest.raises(OSError, match="alice/plain has no calibrator"):
        load_calibrator("alice/plain")
    with pytest.raises(OSError, match="alice/nowhere: no such repository"):
        load_calibrator("alice/nowhere")
    assert main(example.call("alice/unasked")) == 0
    assert "'test.parquet', which is not a data set on the Hub" in failed(["verify", "alice/unasked"], capsys)


def test_a_name_that_is_taken(hub, api, example, capsys):
    api.create_repo("alice/taken")
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="pytorch_model.bin", repo_id="alice/taken")
    error = failed(example.call("alice/taken"), capsys)
    assert (
        "alice/taken is taken: it holds pytorch_model.bin and no results.json" in error and "--overwrite true" in error
    )
    assert api.list_repo_files("alice/taken") == [".gitattributes", "pytorch_model.bin"]
    assert main(example.call("alice/taken", "--overwrite", "true")) == 0
    assert "pytorch_model.bin" not in api.list_repo_files("alice/taken")
    api.create_repo("alice/public")
    assert "alice/public exists and is public" in failed(example.call("alice/public", "--private", "true"), capsys)


def test_somebody_else_was_quicker(hub, api, example, monkeypatch, capsys):
    assert main(example.call("alice/race")) == 0
    write = Repository.read

    def meanwhile(self, path):
        text = write(self, path)
        api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id="alice/race")
        return text

    calibrator = ["--calibrator", str(example.folder / "calibration/calibrators/temperature")]
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "read", meanwhile)
        error = failed(example.call("alice/race", *calibrator), capsys, status=1)
    assert "alice/race has changed" in error
    assert main(example.call("alice/race", *calibrator)) == 0
    assert {"notes.txt", "calibrator/calibrator.json"} <= set(api.list_repo_files("alice/race"))


class DyingHandler(Handler):
    """Takes uploads until `server.lives` is used up; then every connection breaks, in the middle of what was sent."""

    def lfs_put(self, body, oid):
        self.server.uploads.append(oid)
        if self.server.dying and len(self.server.uploads) > 1:
            self.server.dead = True
        if self.server.dead:
            raise ConnectionResetError
        super().lfs_put(body, oid)

    def handle_one(self):
        if self.server.dead:
            self.close_connection = True
            return
        try:
            super().handle_one()
        except ConnectionResetError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one


def test_a_server_that_dies_in_the_middle_of_an_upload(example, tmp_path, monkeypatch, capsys):
    """Large files that arrived are not sent again; the folder was whole before the first byte went."""
    with serve(tmp_path / "root", TOKENS, handler=DyingHandler) as server:
        server.uploads, server.dying, server.dead = [], True, False
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        call = example.call("alice/broken", "--include_predictions", "true")
        padding = example.folder / "model" / "extra.safetensors"  # an upload of several MB beside the weights
        padding.write_bytes(bytes(range(256)) * 4096 * 5)
        error = failed(call, capsys, status=1)
        assert "alice/broken: the Hub cannot be reached" in error and "the same command" in error
        folder = example.folder / "model"
        assert read(folder / "results.json")["n"] == 60 and (folder / "README.md").is_file()
        arrived = {path.name for path in (tmp_path / "root" / "lfs").iterdir()}
        assert arrived
        server.dying = server.dead = False
        server.uploads.clear()
        assert HfApi().list_repo_files("alice/broken") == [".gitattributes"]  # all or nothing
        assert main(call) == 0
        assert server.uploads and not arrived & set(server.uploads)
        assert "extra.safetensors" in HfApi().list_repo_files("alice/broken")
        assert len(HfApi().list_repo_commits("alice/broken")) == 2


def test_nobody_there(example, tmp_path, monkeypatch, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        use_hub(monkeypatch, f"http://127.0.0.1:{probe.getsockname()[1]}", tmp_path / "cache")
    for call in (example.call("alice/x"), ["verify", "alice/x"]):
        assert "alice/x: the Hub cannot be reached (ConnectError)" in failed(call, capsys)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failed(["verify", "alice/x"], capsys)


def test_paths_that_lead_out(hub, api, example, tmp_path, capsys):
    """A repository whose server says so: nothing of it is fetched."""
    assert main(example.call("alice/evil")) == 0
    head = api.repo_info("alice/evil").sha
    commit = hub.root / "models" / "alice" / "evil" / "commits" / f"{head}.json"
    for path in ("../../outside.json", "/tmp/outside.json", "calibrator/../../outside.json", "..\\outside.json"):
        commit.write_text(commit.read_text().replace('"README.md":', f'"{path}":'.replace("\\", "\\\\")))
        with pytest.raises(ValueError, match="leads out of its folder"):
            download("alice/evil", ["*"])
        assert "leads out of its folder" in failed(["verify", "alice/evil"], capsys)
        commit.write_text(commit.read_text().replace(f'"{path}":'.replace("\\", "\\\\"), '"README.md":'))
    assert not list(tmp_path.parent.rglob("outside.json"))


def test_pickled_weights_and_code_are_not_fetched(hub, api, example, tmp_path, monkeypatch, capsys):
    assert main(example.call("alice/pickled")) == 0
    proof = tmp_path / "executed"
    code = f"open({str(proof)!r}, 'w').close()\n"
    for name, content in {"pytorch_model.bin": b"not read", "modeling_evil.py": code.encode()}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="alice/pickled")
    config = read(example.folder / "model" / "config.json")
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Config"}}
    api.upload_file(path_or_fileobj=json.dumps(config).encode(), path_in_repo="config.json", repo_id="alice/pickled")
    questions = ["--dataset", str(example.folder / "test.parquet")]
    main(["verify", "alice/pickled", *questions])
    assert (
        not proof.exists()
        and not list((tmp_path / "cache").rglob("*.bin"))
        and not list((tmp_path / "cache").rglob("*.py"))
    )
    api.delete_file("model.safetensors", repo_id="alice/pickled")
    assert "no file named model.safetensors" in failed(["verify", "alice/pickled", *questions], capsys)
