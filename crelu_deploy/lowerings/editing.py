"""Edits of a graph: names stay unique, and outputs of the graph keep theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from crelu_deploy.lowerings.sitenode import Scope, SiteNode, scopes, unused_name
from crelu_deploy.op import Array


def bypass(node: ir.Node, index: int = 0) -> None:
    """Let the readers of a node read one of its inputs; an output of the graph keeps its name.

    The input must then be computed in the same graph and be no output itself.
    """
    value, output = node.inputs[index], node.outputs[0]
    assert value is not None, "the input is there"
    assert node.graph is not None, "the node is in a graph"
    if output.is_graph_output():
        value.name, output.name = output.name, value.name
        value.shape, value.type = output.shape, output.type
    value.type = value.type or output.type
    _replace_output(output, value)
    output.replace_all_uses_with(value)
    node.graph.remove(node, safe=True)


def _replace_output(old: ir.Value, new: ir.Value) -> None:
    if old.is_graph_output() and old.graph is not None:
        for i, output in enumerate(old.graph.outputs):
            if output is old:
                old.graph.outputs[i] = new


class Editor:
    """Changes one model in place, under names that nothing in the model has.

    The model passed in is the editor's own: pass a clone to keep the original.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken: set[str] = set()
        for scope, graph in scopes(model):
            graph.opset_imports.setdefault("", scope.opset)
        self._take(model.graph)
        for function in model.functions.values():
            self._take(function)

    def _take(self, graph: ir.Graph | ir.Function) -> None:
        inner: list[ir.Graph | ir.Function] = [graph, *graph.subgraphs()]
        values = [v for g in inner for v in g.inputs]
        values += [v for g in inner if isinstance(g, ir.Graph) for v in g.initializers.values()]
        for node in ir.traversal.RecursiveGraphIterator(graph):
            values += node.outputs
            self._taken.add(node.name or "")
        self._taken.update(value.name or "" for value in values)

    def unused(self, wanted: str) -> str:
        """Return the name asked for, or with a number behind it, and never the same twice."""
        name = unused_name(wanted, self._taken)
        self._taken.add(name)
        return name

    def constant(self, scope: Scope, array: Array, name: str, before: ir.Node) -> ir.Value:
        """Add a constant that the node ``before`` can read."""
        name = self.unused(name)
        tensor = ir.Tensor(array, name=name)
        if scope.initializers is not None:
            value = ir.val(name, const_value=tensor)
            scope.initializers.register_initializer(value)
            return value
        node = ir.node("Constant", [], {"value": tensor}, name=name)
        node.outputs[0].name = name
        before.prepend(node)
        return node.outputs[0]

    def name(self, nodes: Iterable[ir.Node], prefix: str) -> None:
        """Name new nodes and their outputs ``<prefix>/<type>``."""
        for node in nodes:
            node.name = self.unused(f"{prefix}/{node.op_type}")
            node.outputs[0].name = node.name

    def substitute(self, old: ir.Value, new: ir.Value, *, keep: Collection[ir.Node] = ()) -> None:
        """Let readers of ``old`` and the graph's outputs have ``new``, under the old name.

        The nodes in ``keep`` go on reading ``old``.
        """
        new.shape, new.type = old.shape, old.type
        new.metadata_props.update(old.metadata_props)
        new.name, old.name = old.name, self.unused(f"{old.name}_before")
        for node, i in list(old.uses()):
            if node not in keep:
                node.replace_input_with(i, new)
        _replace_output(old, new)

    def replace(self, site: SiteNode, nodes: list[ir.Node]) -> None:
        """Put nodes in the place of a canonical node: the last one's output is the site's."""
        self.name(nodes, site.name)
        site.node.prepend(nodes)
        self.substitute(site.y, nodes[-1].outputs[0])
        graph = site.node.graph
        assert graph is not None, "a site's node is in a graph"
        graph.remove(site.node, safe=True)
