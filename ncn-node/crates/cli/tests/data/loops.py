"""Writes loops.onnx: adds `x` to zero, `count` times. As slow as it is told, so tests of time limits and cancellation use it.

    python -m pip install onnx && python loops.py
"""

from pathlib import Path

from onnx import TensorProto, checker, helper


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


body = helper.make_graph(
    [
        helper.make_node("Identity", ["go_on"], ["going_on"]),
        helper.make_node("Add", ["sum", "x"], ["more"]),
    ],
    "body",
    [value("trip", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [1])],
    [value("going_on", TensorProto.BOOL, []), value("more", TensorProto.FLOAT, [1])],
)
graph = helper.make_graph(
    [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("z", TensorProto.FLOAT, [1], [0.0])),
        helper.make_node("Squeeze", ["count"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "zero"], ["y"], body=body),
    ],
    "loops",
    [value("count", TensorProto.INT64, [1]), value("x", TensorProto.FLOAT, [1])],
    [value("y", TensorProto.FLOAT, [1])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
checker.check_model(model, full_check=True)
Path(__file__).with_name("loops.onnx").write_bytes(model.SerializeToString())
