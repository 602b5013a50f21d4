#!/usr/bin/env python3
"""Finds circles between the source files of a folder: files that use each other, directly or
through others. Called by scripts/check-boundaries.sh.

    scripts/circles.py [--known FILE] FOLDER[=CRATE]...   fails if a circle is not in FILE
    scripts/circles.py --self-test                        tries the rules on small houses

A folder holds Rust files (its modules by path, CRATE is the name of the crate in paths) or
TypeScript files.

What counts as a use in Rust: a path in a `use` or in code, outside of comments, strings and items
with `#[cfg(test)]`. A name that a module passes on (`pub use`) leads to the file that defines it,
so a root that declares its children and passes on their names uses none of them, unless its own
code has the name too. In TypeScript every import counts, a type's as well as a value's: a reader
of either file needs the other.

FILE lists what is not untied yet, one module a line: `core/src/hub` stands for `hub.rs` and for
all files in `hub/`. A module of which no file is in a circle any more must leave the list.
"""

import os
import re
import sys
import tempfile

# ---- reading Rust ------------------------------------------------------------------------------

TOKENS = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<raw>\bb?r(?P<hashes>\#*)".*?"(?P=hashes))
      | (?P<string>b?"(?:\\.|[^"\\])*")
      | (?P<char>'(?:\\.[^']*|[^'\\\n])')""",
    re.S | re.X,
)
TEST_ATTRIBUTE = re.compile(r"#\[\s*cfg\s*\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\s*\]")
DEFINITION = re.compile(
    r"\b(?:struct|enum|union|trait|type|fn|const|static|mod)\s+(\w+)|\bmacro_rules!\s*(\w+)"
)
USE = re.compile(r"(\bpub\s*(?:\([^)]*\)\s*)?)?\buse\s+([^;]+);")
PATH = re.compile(r"(?<![\w:])((?:r#)?[A-Za-z_]\w*(?:\s*::\s*(?:r#)?[A-Za-z_]\w*)+)")


def bare(text):
    """The text without comments and with empty strings; lines stay where they are."""

    def blank(match):
        lines = "\n" * match.group(0).count("\n")
        return (" " if match.group("comment") else '""') + lines

    return TOKENS.sub(blank, text)


def end_of_item(text, start):
    """The place behind the item that begins at `start`: its `;` or its closing brace."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
            if depth == 0 and text[at] == "}":
                return at + 1
            if depth < 0:
                return at
        elif text[at] in ";," and depth == 0:
            return at + 1
    return len(text)


def without_tests(text):
    """The text without items that only tests have, and the names of modules among those items."""
    modules, at = set(), 0
    while match := TEST_ATTRIBUTE.search(text, at):
        condition = re.sub(r"not\s*\([^()]*\)", "", match.group(1))
        if not re.search(r"\b(test|loom)\b", condition) or re.match(r"\s*any\b", condition):
            at = match.end()
            continue
        end = end_of_item(text, match.end())
        item = text[match.end() : end]
        if module := re.search(r"\bmod\s+(\w+)\s*;", item):
            modules.add(module.group(1))
        text = text[: match.start()] + "\n" * text[match.start() : end].count("\n") + text[end:]
        at = match.start()
    return text, modules


def leaves(tree):
    """`a::{b, c::{self, d as e}, f::*}` as (path, name here); nothing of `::another_crate`."""
    tree = tree.strip()
    if tree.startswith("::"):
        return
    if (brace := tree.find("{")) < 0:
        path, _, name = tree.partition(" as ")
        parts = [part.strip() for part in path.split("::") if part.strip()]
        if parts and parts[-1] == "self" and len(parts) > 1:
            parts.pop()
        if parts:
            yield parts, (name.strip() or parts[-1])
        return
    head = [part.strip() for part in tree[:brace].split("::") if part.strip()]
    depth, start = 0, brace + 1
    for at in range(brace, len(tree)):
        if tree[at] == "{":
            depth += 1
        elif tree[at] == "}":
            depth -= 1
        if (tree[at] == "," and depth == 1) or (tree[at] == "}" and depth == 0):
            for parts, name in leaves(tree[start:at]):
                whole = head + parts
                if whole[-1] == "self":
                    whole, name = whole[:-1], (name if name != "self" else whole[-2])
                yield whole, name
            start = at + 1


class RustFile:
    def __init__(self, path, module, text):
        self.path, self.module = path, module
        self.text, self.test_modules = without_tests(bare(text))
        # Where a name is visible is no use of that place.
        self.text = re.sub(r"\bpub\s*\(\s*in\b[^)]*\)", "pub(in)", self.text)
        # What inline modules have around them: a path in them begins one `super` lower.
        self.inner = self.inline_modules()
        self.defined = {a or b for a, b in DEFINITION.findall(self.text)}
        self.passed_on, self.imported, self.globs = {}, {}, []
        for match in USE.finditer(self.text):
            for parts, name in leaves(match.group(2)):
                parts = self.rooted(parts, match.start())
                if name == "*":
                    self.globs.append((parts[:-1], bool(match.group(1))))
                else:
                    (self.passed_on if match.group(1) else self.imported)[name] = parts
        self.code = USE.sub(lambda match: "\n" * match.group(0).count("\n"), self.text)

    def inline_modules(self):
        found = []
        for match in re.finditer(r"\bmod\s+(\w+)\s*\{", self.text):
            found.append((match.start(), end_of_item(self.text, match.start()), match.group(1)))
        return found

    def rooted(self, parts, at):
        """A path with `self` and `super` replaced by this file's module, as seen at a place."""
        around = [name for start, end, name in self.inner if start < at < end]
        here = list(self.module) + around
        if parts[0] == "self":
            return ["crate"] + here + parts[1:]
        if parts[0] == "super":
            while parts and parts[0] == "super":
                here, parts = here[:-1], parts[1:]
            return ["crate"] + here + parts
        return parts


class RustFolder:
    def __init__(self, folder, crate):
        self.crate, self.files, tests = crate, {}, set()
        for path in sorted(files_of(folder, ".rs")):
            parts = os.path.relpath(path, folder)[:-3].split(os.sep)
            if parts[-1] in ("mod", "lib", "main") and (len(parts) == 1 or parts[-1] == "mod"):
                # A binary's root beside a library's is a file that no path leads to.
                module = tuple(parts[:-1]) if parts != ["main"] else ("(main)",)
            else:
                module = tuple(parts)
            with open(path, encoding="utf-8") as file:
                self.files[module] = RustFile(path, module if module != ("(main)",) else (), file.read())
        if () not in self.files and ("(main)",) in self.files:
            self.files[()] = self.files.pop(("(main)",))
        for module, file in self.files.items():
            tests |= {module + (name,) for name in file.test_modules}
        is_test = lambda module: any(module[: len(test)] == test for test in tests)
        self.files = {module: file for module, file in self.files.items() if not is_test(module)}

    def target(self, parts, seen=()):
        """The file that a path from the crate's root leads to; None if it leads out of the crate."""
        if parts and parts[0] in ("crate", self.crate):
            parts = parts[1:]
        module = ()
        while len(module) < len(parts) and module + (parts[len(module)],) in self.files:
            module += (parts[len(module)],)
        file, rest = self.files.get(module), parts[len(module) :]
        if file is None or (module, *rest[:1]) in seen:
            return None
        seen = (*seen, (module, *rest[:1]))
        if rest and rest[0] not in file.defined:
            onward = file.passed_on.get(rest[0]) or file.imported.get(rest[0])
            candidates = [onward] if onward else [glob + rest[:1] for glob, public in file.globs if public]
            for onward in candidates:
                if (found := self.inside(onward, module, seen)) is not None:
                    return found if not isinstance(found, RustFolder) else None
                if len(candidates) == 1 and file.passed_on.get(rest[0]):
                    return None
        return file

    def inside(self, parts, module, seen=()):
        """Where a path leads that stands in the file of `module`."""
        if parts[0] in ("crate", self.crate):
            return self.target(parts, seen)
        # The first segment is a child of this module, or comes from outside.
        if module + (parts[0],) in self.files:
            return self.target(["crate", *module, *parts], seen)
        return None

    def uses(self, module, file):
        """(file, name, line) of everything that a file uses of others."""
        found = []

        def add(parts, at, text):
            target = self.inside(parts, file.module)
            if target is not None and target is not file:
                found.append((target.path, parts[-1], text.count("\n", 0, at) + 1))

        for match in USE.finditer(file.text):
            for parts, name in leaves(match.group(2)):
                own = re.search(rf"\b{re.escape(name)}\b", file.code) if name != "*" else None
                # Names that are passed on are used by those that they are passed on to.
                if match.group(1) and not own:
                    continue
                rooted = file.rooted(parts, match.start())
                add(rooted if rooted[-1] != "*" else rooted[:-1], match.start(), file.text)
        for match in PATH.finditer(file.code):
            parts = [part.strip() for part in match.group(1).split("::")]
            add(file.rooted(parts, match.start()), match.start(), file.code)
        return found

    def graph(self):
        return {file.path: self.uses(module, file) for module, file in self.files.items()}


# ---- reading TypeScript ------------------------------------------------------------------------

IMPORT = re.compile(r"""\b(?:import|export)\b([^;"'()]*?)\bfrom\s*["'](\.[^"']+)["']|\bimport\s*\(?\s*["'](\.[^"']+)["']""")


def typescript_graph(folder):
    graph = {}
    for path in sorted(files_of(folder, ".ts", ".tsx")):
        with open(path, encoding="utf-8") as file:
            text = re.sub(r"/\*.*?\*/|(?<![:\"'])//[^\n]*", lambda match: "\n" * match.group(0).count("\n"), file.read(), flags=re.S)
        graph[path] = []
        for match in IMPORT.finditer(text):
            names = " ".join(re.findall(r"\w+", match.group(1) or "")) or "*"
            stem = os.path.normpath(os.path.join(os.path.dirname(path), match.group(2) or match.group(3)))
            stem = re.sub(r"\.js$", "", stem)
            for target in (stem + ".ts", stem + ".tsx", os.path.join(stem, "index.ts")):
                if os.path.exists(target) and target != path:
                    graph[path].append((target, names, text.count("\n", 0, match.start()) + 1))
    return graph


# ---- circles -----------------------------------------------------------------------------------


def files_of(folder, *endings):
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "node_modules"]
        yield from (os.path.join(at, name) for name in names if name.endswith(endings))


def graph_of(folder):
    folder, _, crate = folder.partition("=")
    if next(files_of(folder, ".rs"), None):
        return RustFolder(folder, crate).graph()
    graph = typescript_graph(folder)
    if not graph:
        sys.exit(f"{folder} holds no source file: is this still where they are?")
    return graph


def circles(graph):
    """The strongly connected components of more than one file (Tarjan, without recursion)."""
    index, low, on_stack, stack, found = {}, {}, set(), [], []
    edges = {node: sorted({to for to, _, _ in uses if to in graph}) for node, uses in graph.items()}
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for to in rest:
                if to not in index:
                    index[to] = low[to] = len(index)
                    stack.append(to)
                    on_stack.add(to)
                    work.append((to, iter(edges[to])))
                    break
                if to in on_stack:
                    low[node] = min(low[node], index[to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    if len(stack) - at > 1:
                        found.append(sorted(stack[at:]))
                    on_stack -= set(stack[at:])
                    del stack[at:]
    return found


def edges_to_cut(graph, circle):
    """A few uses without which the circle is none: those that go up in an order that has few."""
    weight = {}
    for node in circle:
        for to, name, _ in graph[node]:
            if to in circle:
                weight.setdefault((node, to), set()).add(name)
    left, first, last = set(circle), [], []
    while left:
        out = lambda node: sum(len(n) for (a, b), n in weight.items() if a == node and b in left and b != node)
        into = lambda node: sum(len(n) for (a, b), n in weight.items() if b == node and a in left and a != node)
        ends = [node for node in sorted(left) if out(node) == 0]
        if ends:
            last.insert(0, ends[0])
            left.remove(ends[0])
            continue
        best = max(sorted(left), key=lambda node: out(node) - into(node) if into(node) else 10**6)
        first.append(best)
        left.remove(best)
    order = {node: at for at, node in enumerate(first + last)}
    return {edge: names for edge, names in weight.items() if order[edge[0]] > order[edge[1]]}


def report(graph, circle):
    print(f"a circle of {len(circle)} files: {' '.join(circle)}", file=sys.stderr)
    cut = edges_to_cut(graph, circle)
    for (node, to), names in sorted(cut.items()):
        lines = sorted({line for target, _, line in graph[node] if target == to})
        print(f"    to cut: {node}:{lines[0]} uses {to} ({', '.join(sorted(names))})", file=sys.stderr)


def module_of(entry, path):
    return path in (entry + ".rs", entry + ".ts", entry) or path.startswith(entry + "/")


def check(folders, known):
    """Reports every circle with a file that is not known, and every known module without one."""
    bad, needed, count = False, set(), 0
    for folder in folders:
        graph = graph_of(folder)
        for circle in circles(graph):
            count += 1
            needed |= {entry for entry in known for path in circle if module_of(entry, path)}
            if not all(any(module_of(entry, path) for entry in known) for path in circle):
                report(graph, circle)
                bad = True
    for entry in sorted(set(known) - needed):
        print(f"{entry} is in no circle any more: take it off the list of known circles", file=sys.stderr)
        bad = True
    return bad, count


# ---- self-test ---------------------------------------------------------------------------------

RUST_CIRCLES = {
    "two files": {"lib.rs": "mod a; mod b;", "a.rs": "use crate::b::B; pub struct A;", "b.rs": "use crate::a::A; pub struct B;"},
    "through a third": {
        "lib.rs": "mod a; mod b; mod c;",
        "a.rs": "use crate::b::B; pub struct A;",
        "b.rs": "fn f() { crate::c::g() } pub struct B;",
        "c.rs": "use super::{a::{self, A}}; pub fn g() {}",
    },
    "a name that the root passes on": {
        "lib.rs": "mod a; mod b; pub use a::A;",
        "a.rs": "use crate::b::B; pub struct A;",
        "b.rs": "use crate::A; pub struct B;",
    },
    "a glob that the root passes on": {
        "lib.rs": "mod a; mod b; pub use a::*;",
        "a.rs": "use crate::b::B; pub struct A;",
        "b.rs": "use crate::A; pub struct B;",
    },
    "a parent whose child uses it": {"lib.rs": "mod a;", "a.rs": "mod b; use b::B; pub struct A;", "a/b.rs": "use super::A; pub struct B;"},
    "a parent in a mod.rs": {"lib.rs": "mod a;", "a/mod.rs": "mod b; fn f() { b::g() } pub struct A;", "a/b.rs": "use super::A; pub fn g() {}"},
    "a name that is passed on and used": {
        "lib.rs": "mod a;",
        "a.rs": "mod b; pub use b::B; pub struct A(B);",
        "a/b.rs": "use super::A; pub struct B;",
    },
    "the crate by its name": {"lib.rs": "mod a; mod b;", "a.rs": "use house::b::B; pub struct A;", "b.rs": "use crate::a::A; pub struct B;"},
    "within an inline module": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "mod inner { use super::super::b::B; } pub struct A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
    "behind a quote in a string": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "const Q: char = '\"'; use crate::b::B; const S: &str = \"//\"; pub struct A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
    "not only in tests": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "#[cfg(not(test))] use crate::b::B; pub struct A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
}
NO_RUST_CIRCLES = {
    "one way": {"lib.rs": "mod a; mod b;", "a.rs": "pub struct A;", "b.rs": "use crate::a::A; pub struct B;"},
    "in comments and strings": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "//! [`crate::b::B`]\n/* use crate::b::B; */ const S: &str = \"crate::b::B\"; pub struct A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
    "in tests": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }",
        "b.rs": "use crate::a::A; pub struct B;",
    },
    "in a file of tests": {
        "lib.rs": "mod a; mod b;",
        "a.rs": "pub struct A; #[cfg(all(test, not(loom)))] mod tests;",
        "a/tests.rs": "use crate::b::B; use super::A;",
        "b.rs": "use crate::a::A; pub struct B;",
    },
    "a root that passes on": {"lib.rs": "mod a; mod b; pub use a::A; pub use b::B;", "a.rs": "use crate::B; pub struct A;", "b.rs": "pub struct B;"},
    "a parent that declares": {
        "lib.rs": "mod a;",
        "a.rs": "mod b; mod c; pub use b::B;",
        "a/b.rs": "use super::c::C; pub struct B;",
        "a/c.rs": "pub struct C;",
    },
    "another crate of a module's name": {
        "lib.rs": "mod a;",
        "a.rs": "mod http; use ::http::{Method, Uri}; pub struct A;",
        "a/http.rs": "use super::A;",
    },
    "a name that a module above sees": {
        "lib.rs": "mod a;",
        "a.rs": "mod b; use b::B; pub struct A;",
        "a/b.rs": "pub(in crate::a) struct B;",
    },
    "a name of another crate": {"lib.rs": "mod a; mod http;", "a.rs": "use http::Method; pub struct A;", "http.rs": "use crate::a::A;"},
}


def self_test():
    def found(files, known=()):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
            errors, sys.stderr = sys.stderr, open(os.devnull, "w", encoding="utf-8")
            try:
                return check([f"{folder}=house"], [f"{folder}/{entry}" for entry in known])[0]
            finally:
                sys.stderr.close()
                sys.stderr = errors

    two = RUST_CIRCLES["two files"]
    one_way = NO_RUST_CIRCLES["one way"]
    typed = {"a.ts": 'import type { B } from "./b.js";', "b.ts": 'import { A } from "./a.js";'}
    loaded = {"a.ts": 'import("./b.js")', "b.ts": 'export * from "./a.js";'}
    straight = {"a.ts": '// from "./b.js"\nexport const a = 1;', "b.ts": 'import { a } from "./a.js";'}
    split = {"lib.rs": "mod a; mod b;", "a.rs": "mod c; use c::C; pub struct A;", "a/c.rs": "use super::A; pub struct C;", "b.rs": ""}
    expected = [(name, files, (), True) for name, files in RUST_CIRCLES.items()]
    expected += [(name, files, (), False) for name, files in NO_RUST_CIRCLES.items()]
    expected += [
        ("a type's import", typed, (), True),
        ("an import when needed", loaded, (), True),
        ("one way in TypeScript", straight, (), False),
        ("a known circle", two, ("a", "b"), False),
        ("a circle known by half", two, ("a",), True),
        ("a known circle within a module", split, ("a",), False),
        ("a list with a module that is in no circle", one_way, ("a",), True),
        ("a list with one module too many", two, ("a", "b", "lib"), True),
    ]
    for name, files, known, bad in expected:
        if found(files, known) != bad:
            sys.exit(f"self-test: {'not noticed' if bad else 'wrongly refused'}: {name}")
    print("self-test: every circle was noticed")


def main(arguments):
    if arguments[:1] == ["--self-test"]:
        return self_test()
    known = []
    if arguments[:1] == ["--known"]:
        with open(arguments[1], encoding="utf-8") as file:
            known = [line.split("#")[0].strip() for line in file if line.split("#")[0].strip()]
        arguments = arguments[2:]
    bad, count = check(arguments, known)
    if count and not bad:
        print(f"{count} known circles")
    sys.exit(bad)


if __name__ == "__main__":
    main(sys.argv[1:])
