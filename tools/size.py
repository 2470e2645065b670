"""Counts lines of code (no blanks, comments or docstrings) per floor, and fails when a budget is passed."""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "diastole"
FLOORS = {
    "0": (
        "types.py",
        "slots.py",
        "slots_absorb.py",
        "slots_drafts.py",
        "slots_steps.py",
        "live.py",
        "registry.py",
        "papers.py",
        "config.py",
        "params.py",
        "clock.py",
        "metrics.py",
    ),
    "1": ("kernels", "state", "weights", "text"),
    "2": ("nn", "sample.py", "spec"),
    "3": ("loops",),
    "4": ("engine",),
    "models": ("models", "layers"),
    "techniques": ("techniques", "heads", "stores"),
    "6": (
        "chat",
        "frontend",
        "cluster",
        "serve",
        "cli",
        "assets",
        "bench",
        "sim",
        "calibrate",
        "reproduce",
        "recipes",
        "signals",
        "llm.py",
        "client.py",
    ),
}
BUDGET = 10_000  # floors 0 to 5 together
LONGEST = 400  # lines of one file
LONGER = {  # files over that, and why
    "config.py": "one definition gives TOML, environment and flags; apart they would drift",
}


def code_lines(path: Path) -> int:
    """Lines that hold code."""
    text = path.read_text("utf-8")
    used: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with path.open("rb") as f:
        for token in tokenize.tokenize(f.readline):
            if token.type not in skip and token.type != tokenize.ENCODING:
                used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                used.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(used)


def main() -> int:
    """Print the table; 1 if a budget is passed."""
    wrong = []
    low = 0
    for floor, places in FLOORS.items():
        files = [f for p in places for f in ([ROOT / p] if p.endswith(".py") else sorted((ROOT / p).rglob("*.py")))]
        lines = sum(code_lines(f) for f in files if f.exists())
        low += lines if floor.isdigit() and int(floor) < 6 else 0
        print(f"{floor:>10}  {lines:6}  {' '.join(places)}")
    print(f"{'0-5':>10}  {low:6}  of {BUDGET}")
    if low > BUDGET:
        wrong.append(f"floors 0 to 5 hold {low} lines, more than {BUDGET}")
    for path in sorted(ROOT.rglob("*.py")):
        n = len(path.read_text("utf-8").splitlines())
        name = str(path.relative_to(ROOT))
        if n > LONGEST and name not in LONGER:
            wrong.append(f"{name} has {n} lines, more than {LONGEST}: split it, or give a reason in tools/size.py")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
