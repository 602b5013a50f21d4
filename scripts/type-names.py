#!/usr/bin/env python3
"""Finds two types of one crate, or of one test binary, that have the same name. Called by
scripts/check-words.sh.

    scripts/type-names.py [FOLDER]     the repository, or another folder; prints what is doubled
    scripts/type-names.py --self-test  tries the rules on a small house

A type is a struct, an enum, a trait, a union, or a type alias that stands at the margin. All files
of a crate's `src` count together, their unit tests too. A test or an example counts with the
modules that it declares, wherever they stand. Two definitions in one file of which each has a
`#[cfg(…)]` are two forms of one type.
"""

import collections
import os
import re
import sys
import tempfile

sys.dont_write_bytecode = True
from circles import bare

VISIBLE = r"(?:pub\s*(?:\([^)]*\))?\s+)?"
TYPE = re.compile(rf"\s*{VISIBLE}(?:unsafe\s+)?(?:struct|enum|trait|union)\s+(\w+)|{VISIBLE}type\s+(\w+)")
MODULE = re.compile(rf"((?:#\[[^\]]*\]\s*)*){VISIBLE}\bmod\s+(\w+)\s*;")
PATH = re.compile(r'#\[\s*path\s*=\s*"([^"]+)"\s*\]')
ELSEWHERE = {"target", "node_modules", ".git"}


def has_cfg(lines, number):
    """Whether one of the attributes above this line is a `#[cfg(…)]`."""
    for above in reversed(lines[:number]):
        above = above.strip()
        if above.startswith("#[cfg("):
            return True
        if above and not above.startswith("#["):
            return False
    return False


def types(file):
    """The names and lines of a file's types; all forms of one type are one."""
    with open(file, encoding="utf-8") as opened:
        lines = bare(opened.read()).split("\n")
    forms = set()
    for number, line in enumerate(lines):
        if not (match := TYPE.match(line)):
            continue
        name = match.group(1) or match.group(2)
        if has_cfg(lines, number):
            if name in forms:
                continue
            forms.add(name)
        yield name, number + 1


def with_modules(root):
    """The file and those of the modules that it declares."""
    files, waiting = [], [(root, os.path.dirname(root))]
    while waiting:
        file, folder = waiting.pop()
        if file in files:
            continue
        files.append(file)
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
        for attributes, name in MODULE.findall(text):
            path = PATH.search(attributes)
            if path:
                places = [os.path.normpath(os.path.join(os.path.dirname(file), path.group(1)))]
            else:
                places = [os.path.join(folder, f"{name}.rs"), os.path.join(folder, name, "mod.rs")]
            for place in places:
                if os.path.exists(place):
                    inside = os.path.dirname(place)
                    if not path and place.endswith(f"{name}.rs"):
                        inside = os.path.join(folder, name)
                    waiting.append((place, inside))
    return files


def walk(folder):
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - ELSEWHERE)
        yield at, sorted(files)


def units(folder):
    """What is built as one: the name of each and its files."""
    for crate, files in walk(folder):
        if "Cargo.toml" not in files:
            continue
        src = os.path.join(crate, "src")
        yield src, [os.path.join(at, file) for at, files in walk(src) for file in files if file.endswith(".rs")]
        for kind in ("tests", "examples", "benches"):
            kind = os.path.join(crate, kind)
            for entry in sorted(os.listdir(kind)) if os.path.isdir(kind) else []:
                for root in (os.path.join(kind, entry), os.path.join(kind, entry, "main.rs")):
                    if root.endswith(".rs") and os.path.isfile(root):
                        yield root, with_modules(root)


def doubled(folder):
    """A line for each name that two types of one unit have."""
    for unit, files in units(folder):
        places = collections.defaultdict(list)
        for file in files:
            for name, line in types(file):
                places[name].append(f"{os.path.relpath(file, folder)}:{line}")
        for name, found in sorted(places.items()):
            if len(found) > 1:
                yield f"{os.path.relpath(unit, folder)}: {name}: {' '.join(found)}"


HOUSE = {
    "Cargo.toml": "",
    "src/lib.rs": "mod a;\npub struct Twice;\n#[cfg(unix)]\nstruct Form;\n#[cfg(not(unix))]\n#[derive(Debug)]\nstruct Form;",
    "src/a.rs": "// struct Once;\nenum Once {}\nimpl X for Y {\n    type Item = u8;\n}\nfn f() {\n    struct Twice;\n}",
    "src/b.rs": "impl X for Z {\n    type Item = u8;\n}\nstruct OfATest;",
    "tests/one.rs": '#[cfg(unix)]\n#[path = "support/deep.rs"]\nmod support;\nstruct OfATest;\ntype Alias = u8;',
    "tests/support/deep.rs": "mod more;\npub(crate) trait Alias {}",
    "tests/support/more.rs": "struct OfATest;",
    "tests/two.rs": "struct OfATest;",
}
FOUND = [
    "src: Twice: src/a.rs:7 src/lib.rs:2",
    "tests/one.rs: Alias: tests/one.rs:5 tests/support/deep.rs:2",
    "tests/one.rs: OfATest: tests/one.rs:4 tests/support/more.rs:1",
]


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        for file, text in HOUSE.items():
            place = os.path.join(folder, file)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w", encoding="utf-8") as opened:
                opened.write(text)
        found = list(doubled(folder))
    if found != FOUND:
        sys.exit(f"types of one name: found {found}, and not {FOUND}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        print("\n".join(doubled(sys.argv[1] if len(sys.argv) > 1 else ".")), end="")
