"""One Concat in the place of two, one behind the other, so that nothing is copied twice."""

from __future__ import annotations

import onnx_ir as ir

from crelu_deploy.lowerings.values import is_onnx, is_read_once, rank_of


class JoinConcats(ir.passes.InPlacePass):
    """A Concat that only a Concat along the same axis reads gives it its inputs.

    So the halves of a site that is one of several inputs of a Concat are written where they belong.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join what can be joined, subgraphs and functions included."""
        modified = False
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            for node in list(graph.all_nodes()):
                if is_onnx(node, "Concat"):
                    modified |= _join(node)
        return ir.passes.PassResult(model, modified=modified)


def _join(node: ir.Node) -> bool:
    inner = [_joinable(node, value) for value in node.inputs]
    if not any(inner):
        return False
    inputs = [
        value
        for given, concat in zip(node.inputs, inner, strict=True)
        for value in (concat.inputs if concat is not None else [given])
    ]
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)
    for concat in inner:
        if concat is not None and concat.graph is not None:
            concat.graph.remove(concat, safe=True)
    return True


def _joinable(node: ir.Node, value: ir.Value | None) -> ir.Node | None:
    """Return the Concat behind an input that can be joined into the node."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or not is_onnx(producer, "Concat"):
        return None
    same = producer.graph is node.graph and is_read_once(value)
    return producer if same and _axis(producer) == _axis(node) else None


def _axis(concat: ir.Node) -> int:
    """Return the axis counted from the end where the rank is known."""
    axis, rank = concat.attributes["axis"].as_int(), rank_of(concat.outputs[0])
    return axis if rank is None else axis % rank - rank
