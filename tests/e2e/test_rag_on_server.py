"""An application that reads its YAML and asks Ollama for what stands there gets the model that was registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ollama
import pytest
import yaml
from registering import ONE_THREAD, Server, Weights, asking, registered

import write_rag_config
from ollamake.errors import OllamakeError

BEFORE = """\
# RAG の設定\r
llm:\r
  use_finetuned: no            # yes にすると…\r
  ollama_model: 'llama3:8b'\r
  ollama_host: "http://elsewhere:11434"   # 推論サーバー\r
\r
retrieval: {top_k: 5,  path: データ}\r
"""
AFTER = """\
# RAG の設定\r
llm:\r
  use_finetuned: true            # yes にすると…\r
  ollama_model: 'ours:q8_0'\r
  ollama_host: "ADDRESS"   # 推論サーバー\r
  use_ollama_fallback: true\r
  num_ctx: 2048\r
\r
retrieval: {top_k: 5,  path: データ}\r
"""


def answer_of_the_application(file: Path) -> int:
    """Ask as an application does that knows nothing but its own file; return the tokens of the answer."""
    llm: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["llm"]
    assert llm["use_finetuned"] is True
    options = {"num_ctx": llm["num_ctx"], "num_predict": 2, **ONE_THREAD}
    messages = [{"role": "user", "content": "道路"}]
    answer = ollama.Client(llm["ollama_host"]).chat(llm["ollama_model"], messages, options=options)
    return int(answer.eval_count or 0)


def test_the_application_uses_the_registered_model(
    ollama_server: Server, weights: dict[str, Weights], tmp_path: Path
) -> None:
    app, marker = tmp_path / "config.yaml", tmp_path / "registered.json"
    app.write_bytes(BEFORE.encode())
    small = weights["Q8_0"]
    made = registered(ollama_server.address, asking(small, "ours:q8_0"), small)
    marker.write_text(json.dumps(made), encoding="utf-8")
    arguments = [
        "--marker",
        str(marker),
        "--spec",
        json.dumps({"file": str(app)}),
        "--output",
        str(tmp_path / "r.json"),
    ]
    write_rag_config.main(arguments)
    assert app.read_bytes() == AFTER.replace("ADDRESS", ollama_server.address).encode()
    assert answer_of_the_application(app) > 0

    # A model that somebody has replaced since is not what the file should lead to.
    app.write_bytes(BEFORE.encode())
    registered(ollama_server.address, asking(small, "ours:q8_0", system="Another."), small)
    with pytest.raises(OllamakeError, match=r"(?s)ours:q8_0 is not as it was registered.*system"):
        write_rag_config.main(arguments)
    ollama_server.client.delete("ours:q8_0")
    with pytest.raises(OllamakeError, match="deleted or renamed"):
        write_rag_config.main(arguments)
    assert app.read_bytes() == BEFORE.encode()
