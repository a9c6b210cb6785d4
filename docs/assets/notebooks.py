"""Notebooks as pages: their text, their code, and what it printed."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Show each notebook under its own name with .md, which nav may name."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
        place = f"[Download this notebook]({Path(file.src_uri).name}){{ .md-button download }}"
        body = "\n\n".join([_cell(cell) for cell in notebook["cells"]] + [place])
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=body))
    return files


def _cell(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    parts = [f"```python\n{text}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f"![Output](data:image/png;base64,{''.join(data['image/png']).strip()})")
        elif printed := "".join(output.get("text") or data.get("text/plain", "")).strip("\n"):
            parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts)
