#!/usr/bin/env python3
"""Writes what is public in a crate as sorted lines, and asks CHANGELOG.md for the differences.
Called by scripts/public-api.sh.

    scripts/public-api.py list FILE              lists the crate of which FILE is rustdoc's JSON
    scripts/public-api.py changelog OLD NEW LOG  fails if a difference of two lists is not in LOG
    scripts/public-api.py growth LIST            fails if a type of the list cannot grow
    scripts/public-api.py --self-test            tries them on small crates and lists

A line is an item with its signature, under the shortest path at which it is public. Its other paths
have a line `pub use`, and so has what another crate defines and this one passes on.
"""

import json
import os
import re
import sys
import tempfile

# The version of rustdoc's JSON that this reads: that of the Rust in rust-toolchain.toml.
FORMATS = range(45, 60)


class Crate:
    def __init__(self, document):
        if document["format_version"] not in FORMATS:
            sys.exit(
                f"rustdoc's JSON has the version {document['format_version']}: see what is new in it, "
                "and widen FORMATS in scripts/public-api.py"
            )
        self.index = document["index"]
        self.lines = set()
        # Of each item, all paths at which it is public.
        self.paths = {}
        root = self.item(document["root"])
        self.module(root, root["name"], ())
        for id, paths in self.paths.items():
            paths = sorted(paths, key=lambda path: (path.count("::"), path))
            self.one(self.item(id), paths[0])
            self.lines |= {f"pub use {path} = {paths[0]}" for path in paths[1:]}

    def item(self, id):
        return self.index.get(str(id))

    # ---- items -----------------------------------------------------------------------------------

    def add(self, item, text):
        note = "#[non_exhaustive] " if "non_exhaustive" in item["attrs"] else ""
        self.lines.add(note + text)

    def module(self, item, path, above):
        self.lines.add(f"pub mod {path}")
        self.children(item, path, above + (item["id"],))

    def children(self, module, path, above):
        for child in filter(None, map(self.item, module["inner"]["module"]["items"])):
            if child["visibility"] != "public":
                continue
            if "use" in child["inner"]:
                self.passed_on(child["inner"]["use"], path, above)
            else:
                self.public(child, f"{path}::{child['name']}", above)

    def public(self, item, path, above):
        if "module" not in item["inner"]:
            self.paths.setdefault(item["id"], set()).add(path)
        elif item["id"] not in above:
            self.module(item, path, above)

    def passed_on(self, use, path, above):
        target = self.item(use["id"])
        if target is None or target["crate_id"] != 0:
            name = "*" if use["is_glob"] else use["name"]
            self.lines.add(f"pub use {path}::{name} = {use['source']}")
        elif not use["is_glob"]:
            self.public(target, f"{path}::{use['name']}", above)
        elif target["id"] not in above and "module" in target["inner"]:
            self.children(target, path, above + (target["id"],))

    def one(self, item, path):
        ((kind, inner),) = item["inner"].items()
        if kind in ("struct", "union"):
            self.add(item, f"pub {kind} {path}{self.generics(inner['generics'])}{self.tuple_of(inner)}")
            self.fields(path, inner.get("kind", {}) if kind == "struct" else {"plain": inner})
            self.implementations(inner["impls"], path)
        elif kind == "enum":
            self.add(item, f"pub enum {path}{self.generics(inner['generics'])}")
            for id in inner["variants"]:
                self.variant(self.item(id), path)
            self.implementations(inner["impls"], path)
        elif kind == "trait":
            bounds = self.bounds(inner["bounds"], ": ")
            self.add(item, f"pub trait {path}{self.generics(inner['generics'])}{bounds}")
            for id in inner["items"]:
                self.associated(self.item(id), path, "")
        elif kind == "function":
            self.add(item, self.function(inner, path, "pub "))
        elif kind == "constant":
            self.add(item, f"pub const {path}: {self.type(inner['type'])}")
        elif kind == "static":
            self.add(item, f"pub static {path}: {self.type(inner['type'])}")
        elif kind == "type_alias":
            self.add(item, f"pub type {path}{self.generics(inner['generics'])} = {self.type(inner['type'])}")
        elif kind == "macro":
            self.add(item, f"pub macro {path}!")
        elif kind == "proc_macro":
            self.add(item, f"pub proc macro {path}!")
        else:
            sys.exit(f"{path} is a {kind}: scripts/public-api.py does not know what that is")

    def tuple_of(self, inner):
        kind = inner.get("kind")
        if not isinstance(kind, dict) or "tuple" not in kind:
            return ""
        fields = [self.item(id) if id is not None else None for id in kind["tuple"]]
        return "(" + ", ".join(f"pub {self.type(f['inner']['struct_field'])}" if f else "_" for f in fields) + ")"

    def fields(self, path, kind):
        if isinstance(kind, dict) and "plain" in kind:
            for id in kind["plain"]["fields"]:
                if field := self.item(id):
                    self.add(field, f"pub field {path}::{field['name']}: {self.type(field['inner']['struct_field'])}")

    def variant(self, item, path):
        kind = item["inner"]["variant"]["kind"]
        text = f"pub variant {path}::{item['name']}"
        if isinstance(kind, dict) and "tuple" in kind:
            fields = [self.item(id) if id is not None else None for id in kind["tuple"]]
            text += "(" + ", ".join(self.type(f["inner"]["struct_field"]) if f else "_" for f in fields) + ")"
        elif isinstance(kind, dict):
            fields = filter(None, map(self.item, kind["struct"]["fields"]))
            text += " { " + ", ".join(f"{f['name']}: {self.type(f['inner']['struct_field'])}" for f in fields) + " }"
        self.add(item, text)

    def implementations(self, ids, path):
        for item in filter(None, map(self.item, ids)):
            inner = item["inner"]["impl"]
            # What the compiler gives to all types, and what follows from it.
            if inner["is_synthetic"] or inner["blanket_impl"] is not None:
                continue
            if inner["trait"] is not None:
                not_ = "!" if inner["is_negative"] else ""
                name = self.path(inner["trait"])
                # The derives' own markers.
                if name != "StructuralPartialEq":
                    implementor = path + self.arguments(inner["for"].get("resolved_path", {}).get("args"))
                    self.lines.add(f"impl{self.generics(inner['generics'])} {not_}{name} for {implementor}{self.where(inner['generics'])}")
                continue
            for id in inner["items"]:
                child = self.item(id)
                if child and child["visibility"] == "public":
                    self.associated(child, path, "pub ")

    def associated(self, item, path, pub):
        if item is None:
            return
        ((kind, inner),) = item["inner"].items()
        path = f"{path}::{item['name']}"
        if kind == "function":
            provided = " { … }" if pub == "" and inner["has_body"] else ""
            self.add(item, self.function(inner, path, pub) + provided)
        elif kind == "assoc_const":
            self.add(item, f"{pub}const {path}: {self.type(inner['type'])}")
        elif kind == "assoc_type":
            default = f" = {self.type(inner['type'])}" if inner["type"] else ""
            self.add(item, f"{pub}type {path}{self.bounds(inner['bounds'], ': ')}{default}")

    def function(self, inner, path, pub):
        header, sig, generics = inner["header"], inner["sig"], inner["generics"]
        output, is_async = sig["output"], header["is_async"]
        # `async_trait` writes `async fn` as a boxed future, with lifetimes of its own.
        boxed = any(param["name"] == "'async_trait" for param in generics["params"])
        if boxed:
            is_async, output = True, self.awaited(output)
            generics = self.without_lifetimes(generics)
        words = [word for word, said in (("const", header["is_const"]), ("async", is_async), ("unsafe", header["is_unsafe"])) if said]
        inputs = ", ".join(self.argument(name, type_, boxed) for name, type_ in sig["inputs"])
        text = "".join(word + " " for word in words)
        result = f" -> {self.type(output, boxed)}" if output else ""
        return f"{pub}{text}fn {path}{self.generics(generics)}({inputs}){result}{self.where(generics)}"

    def argument(self, name, type_, boxed):
        if name == "self":
            text = self.type(type_, boxed)
            short = re.fullmatch(r"(&(?:'\w+ )?(?:mut )?)?Self", text)
            return (short.group(1) or "") + "self" if short else f"self: {text}"
        return f"{name}: {self.type(type_, boxed)}"

    @staticmethod
    def awaited(output):
        future = output["resolved_path"]["args"]["angle_bracketed"]["args"][0]["type"]
        future = future["resolved_path"]["args"]["angle_bracketed"]["args"][0]["type"]
        for each in future["dyn_trait"]["traits"]:
            for constraint in ((each["trait"]["args"] or {}).get("angle_bracketed") or {}).get("constraints", []):
                awaited = constraint["binding"]["equality"]["type"]
                return None if awaited == {"tuple": []} else awaited
        return None

    @staticmethod
    def without_lifetimes(generics):
        its_own = re.compile(r"'(async_trait|life\d+)$")
        params = [param for param in generics["params"] if not its_own.match(param["name"])]
        predicates = []
        for predicate in generics["where_predicates"]:
            if "lifetime_predicate" in predicate:
                continue
            bound = predicate.get("bound_predicate")
            if bound and all(its_own.match(b.get("outlives", "")) for b in bound["bounds"]):
                continue
            predicates.append(predicate)
        return {"params": params, "where_predicates": predicates}

    # ---- types -----------------------------------------------------------------------------------

    def generics(self, generics):
        params = []
        for param in generics["params"]:
            ((kind, inner),) = param["kind"].items()
            if kind == "lifetime":
                params.append(param["name"] + (": " + " + ".join(inner["outlives"]) if inner["outlives"] else ""))
            elif kind == "type" and not inner["is_synthetic"]:
                default = f" = {self.type(inner['default'])}" if inner["default"] else ""
                params.append(param["name"] + self.bounds(inner["bounds"], ": ") + default)
            elif kind == "const":
                params.append(f"const {param['name']}: {self.type(inner['type'])}")
        return f"<{', '.join(params)}>" if params else ""

    def where(self, generics):
        texts = []
        for predicate in generics["where_predicates"]:
            ((kind, inner),) = predicate.items()
            if kind == "bound_predicate":
                texts.append(self.higher(inner) + self.type(inner["type"]) + self.bounds(inner["bounds"], ": "))
            elif kind == "lifetime_predicate":
                texts.append(f"{inner['lifetime']}: {' + '.join(inner['outlives'])}")
            else:
                texts.append(f"{self.type(inner['lhs'])} == {self.term(inner['rhs'])}")
        return f" where {', '.join(texts)}" if texts else ""

    @staticmethod
    def higher(holder):
        names = [param["name"] for param in holder.get("generic_params") or []]
        return f"for<{', '.join(names)}> " if names else ""

    def bounds(self, bounds, before=""):
        texts = []
        for bound in bounds:
            if "trait_bound" in bound:
                inner = bound["trait_bound"]
                mark = {"maybe": "?", "maybe_const": "~const "}.get(inner["modifier"], "")
                texts.append(mark + self.higher(inner) + self.path(inner["trait"]))
            elif "outlives" in bound:
                texts.append(bound["outlives"])
            else:
                texts.append("use<…>")
        return before + " + ".join(texts) if texts else ""

    def term(self, term):
        return self.type(term["type"]) if "type" in term else term["constant"]["expr"]

    def path(self, path):
        # The last segment: two types of a crate never share a name.
        name = path["path"].rsplit("::", 1)[-1]
        return name + self.arguments(path.get("args"))

    def arguments(self, args):
        if not args:
            return ""
        if "parenthesized" in args:
            inner = args["parenthesized"]
            output = f" -> {self.type(inner['output'])}" if inner["output"] else ""
            return f"({', '.join(map(self.type, inner['inputs']))}){output}"
        inner = args.get("angle_bracketed") or {"args": [], "constraints": []}
        texts = []
        for arg in inner["args"]:
            if arg == "infer":
                texts.append("_")
            elif "lifetime" in arg:
                texts.append(arg["lifetime"])
            else:
                texts.append(self.term({"type": arg["type"]} if "type" in arg else {"constant": arg["const"]}))
        for each in inner["constraints"]:
            binding = each["binding"]
            bound = self.bounds(binding["constraint"], ": ") if "constraint" in binding else f" = {self.term(binding['equality'])}"
            texts.append(each["name"] + self.arguments(each["args"]) + bound)
        return f"<{', '.join(texts)}>" if texts else ""

    def type(self, type_, boxed=False):
        if type_ == "infer":
            return "_"
        ((kind, inner),) = type_.items()
        if kind == "resolved_path":
            return self.path(inner)
        if kind in ("generic", "primitive"):
            return {"never": "!"}.get(inner, inner)
        if kind == "borrowed_ref":
            lifetime = inner["lifetime"] or ""
            if boxed and re.match(r"'(life\d+|async_trait)$", lifetime):
                lifetime = ""
            return f"&{lifetime + ' ' if lifetime else ''}{'mut ' if inner['is_mutable'] else ''}{self.type(inner['type'], boxed)}"
        if kind == "raw_pointer":
            return f"*{'mut' if inner['is_mutable'] else 'const'} {self.type(inner['type'])}"
        if kind == "tuple":
            return f"({', '.join(map(self.type, inner))}{',' if len(inner) == 1 else ''})"
        if kind == "slice":
            return f"[{self.type(inner)}]"
        if kind == "array":
            return f"[{self.type(inner['type'])}; {inner['len']}]"
        if kind == "impl_trait":
            return f"impl {self.bounds(inner)}"
        if kind == "dyn_trait":
            texts = [self.higher(each) + self.path(each["trait"]) for each in inner["traits"]]
            return "dyn " + " + ".join(texts + ([inner["lifetime"]] if inner["lifetime"] else []))
        if kind == "function_pointer":
            sig = inner["sig"]
            output = f" -> {self.type(sig['output'])}" if sig["output"] else ""
            return f"{self.higher(inner)}fn({', '.join(self.type(each) for _, each in sig['inputs'])}){output}"
        if kind == "qualified_path":
            trait = self.path(inner["trait"]) if inner["trait"] and inner["trait"]["path"] else ""
            own = self.type(inner["self_type"])
            name = inner["name"] + self.arguments(inner.get("args"))
            return f"<{own} as {trait}>::{name}" if trait and own != "Self" else f"{own}::{name}"
        sys.exit(f"scripts/public-api.py does not know the type {kind}")


# ---- the changelog -------------------------------------------------------------------------------

def own_path(line):
    """The path of the item that a line is about."""
    line = re.sub(r"^(#\[\w+\] )*", "", line)
    if line.startswith("impl"):
        return re.search(r" for ([\w:]+)", line).group(1)
    words = re.search(r"(?<![\w:])(\w+(?:::(?:\w+|\*))+|(?<=mod )\w+)", line)
    return words.group(1) if words else line


def newest_part(log):
    """The text of the changelog's first version: what is not released yet."""
    return re.split(r"^## ", log, flags=re.M)[1] if "\n## " in "\n" + log else ""


def unmentioned(old, new, log):
    """The lines of two lists that differ, and that the changelog does not explain.

    A line is explained by the last segment of its item's path. It is also explained by the name of a
    type, a trait or a module that has come, gone or changed itself: for its members, and for the
    signatures that have it.
    """
    # As code, so that an item is not taken for named because its name is a word of English.
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", newest_part(log)))))
    changed = sorted(set(old) ^ set(new))
    big = re.compile(r"^(#\[\w+\] )*pub (mod|use|struct|union|enum|trait|type) ")
    explained = {own_path(line).rsplit("::", 1)[-1] for line in changed if big.match(line)} & named
    moved = {own_path(line) for line in changed if explained & set(re.findall(r"\w+", line)) and not big.match(line)}
    found = []
    for line in changed:
        path = own_path(line)
        if path.rsplit("::", 1)[-1] in named or path in moved or explained & set(re.findall(r"\w+", line)):
            continue
        if path.endswith("*") and named & set(re.findall(r"\w+", line.split("=")[-1])):
            continue
        found.append(("- " if line in old else "+ ") + line)
    return found


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def changelog(old, new, log):
    with open(log, encoding="utf-8") as file:
        missing = unmentioned(lines_of(old), lines_of(new), file.read())
    for line in missing:
        print(f"{line}\n    the first part of {os.path.basename(log)} does not name `{own_path(line).rsplit('::', 1)[-1]}`", file=sys.stderr)
    sys.exit(bool(missing))


# ---- growth --------------------------------------------------------------------------------------

# Types that other crates may build and match whole, each with its reason.
CLOSED = {
    "airwave_core::Position": "a number under a name of its own: it never has a second field",
    "airwave_protocol::Attributes": "pairs under a name of their own, as the wire has them",
    "airwave_protocol::Base64": "bytes under a name of their own, for their form on the wire",
}


def closed(lines):
    """The public enums, and the structs with public fields, that are not `#[non_exhaustive]`.

    A new variant or field of such a type breaks every crate that matches or builds it.
    """
    with_fields = {own_path(line).rsplit("::", 1)[0] for line in lines if line.startswith("pub field ")}
    found = []
    for line in lines:
        kind = re.match(r"pub (enum|struct|union) ", line)
        if not kind or own_path(line) in CLOSED:
            continue
        if kind[1] == "enum" or own_path(line) in with_fields or re.search(r"\(.*\bpub ", line):
            found.append(line)
    return found


def growth(path):
    found = closed(lines_of(path))
    for line in found:
        print(f"{line}\n    is not #[non_exhaustive], and has no reason in CLOSED of scripts/public-api.py", file=sys.stderr)
    sys.exit(bool(found))


# ---- self-test -----------------------------------------------------------------------------------

LOG = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- `Hub::ready` and `Port` are new, as we said; do not wait.\n\n## 0.1.0\n\n- `Old::thing`\n"
READY, PORT = "pub fn house::Hub::ready(&self)", "pub struct house::Port"
CHANGES = [
    ("nothing", [READY], [READY], False),
    ("an item that is named", [], [READY], False),
    ("an item that is not named", [], ["pub fn house::Hub::wait(&self)"], True),
    ("an item that went, not named", ["pub fn house::Hub::wait(&self)"], [], True),
    ("an item that only an old version names", [], ["pub fn house::Old::thing()"], True),
    ("a changed signature that is not named", ["pub fn house::f(u8)"], ["pub fn house::f(u16)"], True),
    ("a member of a new type that is named", [], [PORT, "pub field house::Port::number: u16"], False),
    ("a member that is new in an old type", [PORT], [PORT, "pub field house::Door::width: u16"], True),
    ("a signature that has a new type", ["pub fn house::f(u8)"], [PORT, "pub fn house::f(p: Port)"], False),
    ("a type that can grow", ["pub struct house::Door"], ["#[non_exhaustive] pub struct house::Door"], True),
    ("a trait of a type", [PORT], [PORT, "impl Clone for house::Door"], True),
]


FIELD = "pub field house::Door::width: u8"
TYPES = [
    ("an enum", ["pub enum house::Room"], True),
    ("an enum that can grow", ["#[non_exhaustive] pub enum house::Room"], False),
    ("a struct with a public field", ["pub struct house::Door", FIELD], True),
    ("a struct with type parameters", ["pub struct house::Door<T: Send>", FIELD], True),
    ("a struct that can grow", ["#[non_exhaustive] pub struct house::Door", FIELD], False),
    ("a struct without public fields", ["pub struct house::Door", "pub field house::Doors::width: u8"], False),
    ("a tuple with a public field", ["pub struct house::Door(_, pub u8)"], True),
    ("a tuple without public fields", ["pub struct house::Door(_)"], False),
    ("a type with a reason", ["pub struct airwave_core::Position(pub u64)"], False),
]


def self_test():
    for name, lines, bad in TYPES:
        if bool(closed(lines)) != bad:
            sys.exit(f"self-test: {'not noticed' if bad else 'wrongly refused'}: {name}")
    for name, old, new, bad in CHANGES:
        if bool(unmentioned(old, new, LOG)) != bad:
            sys.exit(f"self-test: {'not noticed' if bad else 'wrongly refused'}: {name}")
    print("self-test: every difference that the changelog does not name, and every type that cannot grow, was noticed")


def main(arguments):
    if arguments == ["--self-test"]:
        self_test()
    elif arguments[:1] == ["list"] and len(arguments) == 2:
        with open(arguments[1], encoding="utf-8") as file:
            print("\n".join(sorted(Crate(json.load(file)).lines)))
    elif arguments[:1] == ["growth"] and len(arguments) == 2:
        growth(arguments[1])
    elif arguments[:1] == ["changelog"] and len(arguments) == 4:
        changelog(*arguments[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
