"""ONNX Runtime: a model of one convolution, its input and output bound to memory that stays."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.cases import Case
from bench.engines import Convolution
from bench.harness import THREADS


class OnnxRuntimeEngine:
    version = onnxruntime.__version__

    def convolution(self, case: Case) -> Convolution:
        x, weight, bias = case.values()
        node = helper.make_node(
            "Conv",
            ["x", "weight", "bias"],
            ["y"],
            kernel_shape=[case.kernel] * 2,
            strides=[case.stride] * 2,
            pads=[case.padding] * 4,
        )
        shapes = [1, case.inputs, *case.size], [1, case.outputs, *case.output_size]
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip("xy", shapes, strict=True)
        ]
        values = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
        graph = helper.make_graph([node], case.name, ends[:1], ends[1:], values)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        source = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        out = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shapes[1], np.float32))
        binding.bind_ortvalue_input("x", source)
        binding.bind_ortvalue_output("y", out)
        return Convolution(
            lambda: session.run_with_iobinding(binding),
            lambda: np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1)),
        )


def open_engine(variant: str | None) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine()
