"""The page of what the oracle says of other libraries' functions."""

import sys

from saccade.bench import field_report
from saccade.testing.peers import PEERS


def test_every_peer_that_is_installed_has_a_version():
    found = {name: field_report.version_of(name) for name, peer in PEERS.items() if peer.installed}
    assert {"torch-sdpa", "pillow-quantize", "faiss-kmeans"} <= found.keys() and all(found.values())


def test_a_page_has_a_row_a_dtype_and_what_fails_with_its_program(tmp_path, monkeypatch):
    out = tmp_path / "page.md"
    peers = ["torch-gelu", "torch-sigmoid-cross-entropy", "xformers"]
    options = ["--seconds", "2", "--dtypes", "float32", "--peers", *peers]
    monkeypatch.setattr(sys, "argv", ["", "--out", str(out), *options])
    field_report.main()
    text = out.read_text()
    assert "| `torch-gelu` | " in text and " | gelu | float32 | PASS |" in text
    assert " | sigmoid_cross_entropy | float32 | FAIL (" in text
    assert "## torch-sigmoid-cross-entropy, float32" in text and "```python" in text
    assert "| `xformers` | needs a GPU | attention |" in text
