"""The architecture, held: who may import what."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "exvideo_core").rglob("*.py"))
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version",
    "execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip
STAGES = {"conditioning", "sampling", "decode", "export"}


def imports(path: Path) -> set[str]:
    """Top-level packages a file imports from outside, and `.name` for the siblings of its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f".{node.module or alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_one_module_of_the_core_knows_the_host():
    assert {path.parent.name for path in CORE if imports(path) & HOST_MODULES} == {"host"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_core_files_do_not_reach_up_or_sideways(path):
    found = imports(path)
    # A program is, like a node, outside the core.
    assert path.parent.name == "host" or path.stem == "__main__" or ".host" not in found
    if path.stem in STAGES:
        assert not {name.removeprefix(".") for name in found} & STAGES


def test_the_core_imports_without_a_host():
    files = [path.relative_to(ROOT) for path in CORE if path.parent.name != "host"]
    modules = [".".join(path.with_suffix("").parts) for path in files if not path.stem.startswith("__")]
    assert "exvideo_core.post_tuning.training" in modules
    # A process of its own, with nothing but the repository on its path: no ComfyUI to be found.
    code = f"import sys, importlib\n[importlib.import_module(m) for m in {modules}]\nassert 'comfy' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_entry_point_imports_nothing_until_it_is_called():
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)
    names = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert names == {"comfy_entrypoint"}


def test_requirements_leave_the_host_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    required = [line for line in lines if line and not line.startswith("#")]
    assert required == project["dependencies"]
    assert not any(name in line for line in required for name in ("torch", "numpy", "opencv", "==", "<", "xformers"))
    assert "comfyui" not in project["name"].lower()
