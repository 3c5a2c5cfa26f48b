"""What a run measured, as one JSON file and as Markdown.

    python bench/table.py OUT

reads OUT/rows.jsonl, a line for each row of a benchmark, and OUT/parts.jsonl, a line for each part
of bench/gpu.sh, and writes OUT/results.json and OUT/results.md. Lines that were cut off are left.
"""

import json
import sys
from pathlib import Path


def markdown(rows):
    """Dicts as a table, with a column for each key in the order in which they come up."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [[str(row.get(head, "")).replace("|", r"\|") for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [heads, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def read(file):
    """The lines of JSON in a file that may be missing or end in the midst of one."""
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            print(f"{file.name}: left out: {line[:60]}")
    return found


def main(out):
    rows, parts = read(out / "rows.jsonl"), read(out / "parts.jsonl")
    benches = {}
    for row in rows:
        benches.setdefault((row["bench"], row["machine"]), []).append(row["columns"])
    sections = [f"## {bench}\n\n{on}\n\n{markdown(v)}" for (bench, on), v in benches.items()]
    sections += [f"## Parts\n\n{markdown(parts)}"] if parts else []
    (out / "results.json").write_text(json.dumps({"parts": parts, "rows": rows}, indent=1))
    (out / "results.md").write_text("\n\n".join([*sections, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
