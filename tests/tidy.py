#!/usr/bin/env python3
"""House rules that a machine can check: include arrows, banned calls, sizes, stray words.

    tidy.py [REPOSITORY]      prints each breach; exit 1 if there is one
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()

# folder -> folders it may include (besides itself). Only server/main.c sees config/.
ARROWS = {
    "base": set(),
    "config": {"base"},
    "kernels": {"base"},
    "engine": {"kernels", "base"},
    "server": {"engine", "kernels", "base"},
    "client": {"base"},
}
# library header -> where it may appear
HOMES = {
    r"grpc/|google/|inferd/v1/": ("server/", "client/", "tests/"),
    r"protobuf-c/": ("server/", "client/", "tests/"),
    r"yaml\.h": ("config/", "tests/"),
    r"cuda|cublas|mma\.h": ("kernels/cuda/", "tests/kernels/cuda", "tests/bench/bench_cuda"),
    r"microhttpd\.h": ("server/admin",),
    r"utf8proc\.h": ("engine/",),
    r"jansson\.h": ("engine/", "client/", "tests/"),
    r"openssl/": ("base/", "server/tls"),
    r"histedit\.h|editline": ("client/",),
    r"check\.h": ("tests/",),
}
BANNED = re.compile(r"(?<![\w.>])(strcpy|strcat|sprintf|vsprintf|atoi|atol|atof|strtok|system|alloca|gets)\s*\(")
LINES_MAX, LINES_MAX_TEST, COLUMNS_MAX, FUNCTION_MAX = 600, 1200, 100, 70

breaches = []


def breach(path, line, text):
    breaches.append(f"{path.relative_to(ROOT)}:{line}: {text}")


def sources():
    names = subprocess.run(["git", "ls-files", "*.c", "*.h", "*.cu", "*.cuh"], cwd=ROOT, text=True,
                           capture_output=True).stdout.split()
    if not names:  # not a git checkout (a source archive)
        names = [str(p.relative_to(ROOT)) for pat in ("*.c", "*.h", "*.cu", "*.cuh") for p in ROOT.rglob(pat)
                 if "build" not in p.parts]
    return [ROOT / n for n in names if (ROOT / n).exists() and not n.startswith("cmake/grpc/")]


def check_includes(path, rel, lines):
    folder = rel.split("/")[0]
    for i, line in enumerate(lines, 1):
        m = re.match(r'\s*#\s*include\s+["<]([^">]+)[">]', line)
        if not m:
            continue
        header = m.group(1)
        top = header.split("/")[0]
        if folder in ARROWS and top in ARROWS and top != folder and top not in ARROWS[folder]:
            if not (rel == "server/main.c" and top == "config"):
                breach(path, i, f"{folder}/ may not include {header}")
        if top in ARROWS or header.startswith("kernels"):
            continue
        for pattern, homes in HOMES.items():
            if re.match(pattern, header) and not rel.startswith(homes):
                breach(path, i, f"<{header}> belongs in {', '.join(homes)}")


def check_text(path, rel, lines):
    limit = LINES_MAX_TEST if rel.startswith("tests/") else LINES_MAX
    if len(lines) > limit:
        breach(path, len(lines), f"{len(lines)} lines: more than {limit}")
    for i, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            breach(path, i, f"{len(line)} columns")
        code = re.sub(r'"(\\.|[^"\\])*"', '""', line).split("//")[0]
        if not code.lstrip().startswith(("*", "/*")):
            m = BANNED.search(code)
            if m:
                breach(path, i, f"banned call {m.group(1)}()")
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))", line):
            breach(path, i, "a TODO without an issue")


def check_functions(path, rel, lines):
    """A function starts at a line that ends in '{' in column 0's block and ends at a lone '}' in column 0."""
    start = None
    for i, line in enumerate(lines, 1):
        if start is None and line.rstrip().endswith("{") and "(" in line and re.match(r"^[A-Za-z_]", line):
            start = i
        elif start is None and re.match(r"^    +\S.*\)\s*\{$", line) and i > 1 and re.match(r"^[A-Za-z_].*[,(]$", lines[i - 2]):
            start = i - 1
        elif line.startswith("}") and start is not None:
            if i - start + 1 > FUNCTION_MAX:
                breach(path, start, f"function of {i - start + 1} lines: more than {FUNCTION_MAX}")
            start = None


def main():
    files = sources()
    for path in files:
        rel = str(path.relative_to(ROOT))
        lines = path.read_text(encoding="utf-8").splitlines()
        check_includes(path, rel, lines)
        check_text(path, rel, lines)
        check_functions(path, rel, lines)
    for line in breaches:
        print(line)
    print(f"{len(files)} files, {len(breaches)} breaches")
    return 1 if breaches or not files else 0


sys.exit(main())
