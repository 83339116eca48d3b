"""Calls that run code or take it from data, found in sources by their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

BANNED = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "__import__": "imports by a name that may come from data",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell",
    "pickle.load": "runs code in data",
    "pickle.loads": "runs code in data",
    "pickle.Unpickler": "runs code in data",
    "marshal.load": "runs code in data",
    "marshal.loads": "runs code in data",
    "shelve.open": "runs code in data",
    "joblib.load": "runs code in data",
    "yaml.load": "runs code in data",
    "torch.hub.load": "runs code from the network",
    "urllib.request.urlopen": "needs the network",
    "urllib.request.urlretrieve": "needs the network",
    "requests.get": "needs the network",
    "ssl._create_unverified_context": "trusts any server",
    "tempfile.mktemp": "gives a name that others can take first",
}


def breaches(source: str, name: str) -> Iterator[str]:
    """What in `source` is against the rules, as `name:line: what`."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            reason = BANNED.get(called) or _by_arguments(called, node)
            if reason:
                yield f"{name}:{node.lineno}: {called} {reason}"


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local names of what is imported, with their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                yield local, alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of what is called, `?.name` for a method."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


def _by_arguments(called: str, node: ast.Call) -> str | None:
    """What is wrong with the arguments of a call, or None."""
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_not(name: str, wanted: object) -> bool:
        value = given.get(name)
        return not (isinstance(value, ast.Constant) and value.value is wanted)

    if called.startswith("subprocess.") and "shell" in given and is_not("shell", False):
        return "runs a shell"
    if called == "torch.load" and is_not("weights_only", True):
        return "without weights_only=True runs code in data"
    if "weights_only" in given and is_not("weights_only", True):
        return "with weights_only that is not True runs code in data"
    if "allow_pickle" in given and is_not("allow_pickle", False):
        return "with allow_pickle runs code in data"
    if "trust_remote_code" in given and is_not("trust_remote_code", False):
        return "runs code from the network"
    if "verify" in given and isinstance(given["verify"], ast.Constant) and given["verify"].value is False:
        return "trusts any server"
    return None


def sources(root: Path, folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Name and text of every Python file below `folders` of `root`, and of those in `root` itself."""
    files = [*root.glob("*.py"), *(file for folder in folders for file in (root / folder).rglob("*.py"))]
    for file in sorted(files):
        yield file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
