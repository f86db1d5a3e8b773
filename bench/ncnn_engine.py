"""ncnn: its convolution in float32, with its Winograd and in the packing that it prefers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ncnn
import numpy as np

from bench.cases import Case
from bench.engines import Convolution
from bench.harness import THREADS

PARAM = """7767517
2 2
Input in 0 1 x
Convolution conv 1 1 x y 0={outputs} 1={kernel} 3={stride} 4={padding} 5=1 6={count}
"""
FLOAT32 = bytes(4)
"""The tag before a weight in ncnn's files that is stored as float32."""
AS_PACKED = 1
"""`Extractor.extract`: keep the packed layout, as between the layers of a network."""

POOLS = ncnn.PoolAllocator(), ncnn.PoolAllocator()
"""Allocators of outputs and of scratch space: they must outlive the arrays in them."""


class NcnnEngine:
    version = ncnn.__version__

    def convolution(self, case: Case) -> Convolution:
        x, weight, bias = case.values()
        net = ncnn.Net()
        net.opt.num_threads = THREADS
        net.opt.blob_allocator, net.opt.workspace_allocator = POOLS
        for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
            setattr(net.opt, f"use_{reduced}", False)
        shape = {
            "outputs": case.outputs,
            "kernel": case.kernel,
            "stride": case.stride,
            "padding": case.padding,
        }
        if net.load_param_mem(PARAM.format(**shape, count=weight.size)):
            raise RuntimeError(f"ncnn does not take the layer {case.name}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "conv.bin"
            file.write_bytes(FLOAT32 + weight.tobytes() + bias.tobytes())
            if net.load_model(str(file)):
                raise RuntimeError(f"ncnn does not take the weights of {case.name}")

        def run(source: ncnn.Mat) -> ncnn.Mat:
            extractor = net.create_extractor()
            extractor.input("x", source)
            failed, found = extractor.extract("y", AS_PACKED)
            if failed:
                raise RuntimeError(f"ncnn failed at {case.name}")
            return found

        planes = np.ascontiguousarray(x[0].transpose(2, 0, 1))
        plain = ncnn.Mat(planes).clone()  # a Mat of an array does not keep it alive
        # the input arrives packed like an output, as in the middle of a network
        pack = run(plain).elempack
        source = ncnn.convert_packing(plain, pack) if case.inputs % pack == 0 else plain
        last: list[ncnn.Mat] = []

        def call() -> None:
            last[:] = [run(source)]

        def read() -> np.ndarray:
            unpacked = np.array(ncnn.convert_packing(last[0], 1))
            return np.ascontiguousarray(unpacked.transpose(1, 2, 0))[None]

        return Convolution(call, read)


def open_engine(variant: str | None) -> NcnnEngine:
    return NcnnEngine()
