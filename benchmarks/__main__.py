"""Run one benchmark by name, or list them: ``python -m benchmarks [NAME [OPTIONS]]``.

Every module of this package with a function ``main(arguments)`` is a benchmark.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def available() -> dict[str, str]:
    """Return the benchmarks: name and the first line of what they say of themselves."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark named first with the remaining arguments; list all without a name."""
    names = available()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [OPTIONS]\n")
        for name, about in names.items():
            print(f"  {name:<12} {about}")
        return 0
    if arguments[0] not in names:
        print(
            f"there is no benchmark '{arguments[0]}'; there are: {', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    module = importlib.import_module(f"benchmarks.{arguments[0]}")
    return int(module.main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
