"""Parses the Swift that is written by hand: there may be no compiler where this runs."""

import pathlib
import sys

import tree_sitter
import tree_sitter_swift

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
# The grammar does not know all of what is generated.
GENERATED = "NCNCore"


def problems(node):
    if node.type == "ERROR" or node.is_missing:
        yield node
        return
    for child in node.children:
        yield from problems(child)


found = 0
files = [file for directory in sys.argv[1:] for file in pathlib.Path(directory).rglob("*.swift")]
for file in files:
    if file.parent.name == GENERATED or ".build" in file.parts:
        continue
    for node in problems(PARSER.parse(file.read_bytes()).root_node):
        line, column = node.start_point
        print(f"{file}:{line + 1}:{column + 1}: {node.text[:60]!r}")
        found += 1
sys.exit(found > 0 or len(files) < 5)
