"""No module needs itself to be imported first."""

import grimp


def circles(graph):
    """Return the sets of modules that import each other in a circle (Tarjan, 1972)."""
    number, lowest, stack, circular = {}, {}, [], []

    def visit(module):
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if imported not in number:
                visit(imported)
            if imported in stack:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == number[module]:
            at = stack.index(module)
            members = stack[at:]
            del stack[at:]
            if len(members) > 1:
                circular.append(members)

    for module in sorted(graph.modules):
        if module not in number:
            visit(module)
    return circular


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count, those for type checkers alone do not."""
    graph = grimp.build_graph("embedlm", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 100
    assert circles(graph) == []


def test_a_circle_is_seen():
    graph = grimp.ImportGraph()
    for module in "abcd":
        graph.add_module(module)
    for importer, imported in ("ab", "bc", "ca", "cd"):
        graph.add_import(importer=importer, imported=imported)
    assert circles(graph) == [["a", "b", "c"]]
