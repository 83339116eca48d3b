"""Empty libraries in place of those of CUDA, so that a build of PyTorch for GPUs is installed without gigabytes.

PyTorch's libraries name what they need of others, by file and by version of symbols. Where no GPU is, nothing of it is
called; the loader only has to find the names.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_SYMBOL = re.compile(r"GLOBAL +\w+ +UND (\w+)(?:@(\S+) \(\d+\))?$", re.MULTILINE)
_DEFINED = re.compile(r"(?:GLOBAL|WEAK) +\w+ +\d+ (\w+)", re.MULTILINE)
_FILE = re.compile(r"Version: \d+  File: (\S+)  Cnt: \d+\n((?: .*Name: .*\n)*)")
_OTHERS = ("Py", "_Py", "_Z", "__")
"""How the names begin that Python and the runtime of C++ have, and those of C++, which PyTorch has itself."""
_NODE = re.compile(r"Name: (\S+)")


def add(libraries: Path) -> list[str]:
    """Make what the libraries in the folder `libraries` need and is not to be found; returns the names."""
    files = [path for path in sorted(libraries.iterdir()) if ".so" in path.name]
    wanted = {name for path in files for name in _NEEDED.findall(_read(path, "-d"))}
    missing = sorted(name for name in wanted if not _is_found(name, libraries))
    nodes: dict[str, set[str]] = defaultdict(set)
    symbols: dict[str, set[str]] = defaultdict(set)
    defined: set[str] = set()
    for path in files:
        for name, text in _FILE.findall(_read(path, "-V")):
            nodes[name] |= set(_NODE.findall(text))
        text = _read(path, "--dyn-syms")
        defined |= set(_DEFINED.findall(text))
        for symbol, node in _SYMBOL.findall(text):
            symbols[node].add(symbol)
    bare = {name for name in symbols[""] - defined if not name.startswith(_OTHERS)}
    for name in missing:
        _build(libraries / name, {node: symbols[node] for node in sorted(nodes[name])} or {"": bare})
    return missing


def _is_found(name: str, libraries: Path) -> bool:
    """Whether the loader finds a library: beside those of PyTorch, in a package of NVIDIA's, or in the system."""
    packages = libraries.parents[1] / "nvidia"
    if (libraries / name).exists() or any(packages.glob(f"*/lib/{name}")):
        return True
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return f"\t{name} " in known


def _build(file: Path, symbols: dict[str, set[str]]) -> None:
    """A library that holds functions of these names, by version, which do nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "versions")
        source.write_text("".join(_functions(symbols)))
        script.write_text("".join(_node(node, names) for node, names in symbols.items()) or _node("", ()))
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{file.name}", f"-Wl,--version-script={script}"]
        subprocess.run([*command, str(source), "-o", str(file)], check=True)


def _node(node: str, names: Iterable[str]) -> str:
    """A line of the linker's script: the names of a version, or without one all there are."""
    named = "".join(f" {name};" for name in sorted(names)) if node else " *;"
    return f"{node} {{ global:{named} }};\n" if named else f"{node} {{ }};\n"


def _functions(symbols: dict[str, set[str]]) -> Iterator[str]:
    for names in symbols.values():
        yield from (f"long {name}(void) {{ return 1; }}\n" for name in sorted(names))


def _read(path: Path, option: str) -> str:
    return subprocess.run(["readelf", "-W", option, str(path)], capture_output=True, text=True, check=True).stdout
