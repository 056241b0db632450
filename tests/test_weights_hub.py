"""The Hugging Face Hub: its own library against a server of ours; then without one, from the cache."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import twins

from saccade.models import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """(address, requests): a server of the repository someone/tiny, a Hugging Face ViT."""
    model, _, _ = twins.huggingface_vit()
    model.save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "merges.txt").write_text("#version: 0.2\nc a\n")
    clusters = [[-1, 0, 1], [1, 0, -1]]  # an ImageGPT's, for the palette
    (tmp_path / "repository" / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters}))
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            start = "/someone/tiny/resolve/main/"
            file = tmp_path / "repository" / self.path.removeprefix(start)
            if not self.path.startswith(start) or not file.is_file():
                self.send_response(404)
                code = "EntryNotFound" if self.path.startswith("/someone/tiny/") else "RepoNotFound"
                self.send_header("X-Error-Code", code)
                self.end_headers()
                return None
            content = file.read_bytes()
            self.send_response(200)
            for name, value in {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT,
                "Content-Length": str(len(content)),
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            return content

        def do_GET(self):
            content = self.do_HEAD()
            if content is not None:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def run(name, home, call="load({!r})[1].width", **environment):
    program = "from saccade.models import load, load_palette; from saccade.tokenizer import Tokenizer"
    program = f"{program}; print({call.format(name)})"
    environment = dict(os.environ, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", **environment)
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)


def test_a_repository_is_downloaded_once_and_found_again_without_a_network(hub, tmp_path):
    address, asked = hub
    home = tmp_path / "home"
    done = run("hf:someone/tiny", home, HF_ENDPOINT=address)
    assert done.stdout.strip() == "16", done.stderr
    assert any(path.endswith("config.json") for path in asked)
    asked.clear()
    done = run("hf:someone/tiny", home, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == "16", done.stderr
    assert not asked
    palette = run("hf:someone/tiny", home, "load_palette({!r}).centers.tolist()", HF_HUB_OFFLINE="1")
    assert palette.stdout.strip() == "[[0.0, 127.5, 255.0], [255.0, 127.5, 0.0]]", palette.stderr
    done = run("hf:someone/tiny", home, "len(Tokenizer.load({!r}))", HF_ENDPOINT=address)
    assert done.stdout.strip() == "515", done.stderr
    done = run("hf:someone/other", home, HF_ENDPOINT=address)
    assert "ValueError: hf:someone/other" in done.stderr


@pytest.mark.parametrize("name", ["hf:", "hf:one", "hf:one/two/three", "hf:/two"])
def test_what_is_no_name_of_a_repository_is_refused(name):
    with pytest.raises(ValueError, match="expected hf:owner/name"):
        load(name)
