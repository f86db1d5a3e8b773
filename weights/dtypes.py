"""Element types: one table from the names used in files to sizes and NumPy types."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """An element type as stored.

    `stored` is the NumPy type of the stored bytes without byte order ("f4"), or "" for a type without one, whose
    values are not converted. bfloat16 is the upper half of a float32: `u2`, widened when it is read.
    """

    name: str
    itemsize: int
    stored: str


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("float16", 2, "f2"),
        DType("bfloat16", 2, "u2"),
        DType("float32", 4, "f4"),
        DType("float64", 8, "f8"),
        DType("complex64", 8, "c8"),
        DType("complex128", 16, "c16"),
        DType("int8", 1, "i1"),
        DType("int16", 2, "i2"),
        DType("int32", 4, "i4"),
        DType("int64", 8, "i8"),
        DType("uint8", 1, "u1"),
        DType("uint16", 2, "u2"),
        DType("uint32", 4, "u4"),
        DType("uint64", 8, "u8"),
        DType("bool", 1, "u1"),
        DType("float8_e4m3fn", 1, ""),
        DType("float8_e5m2", 1, ""),
        DType("float8_e4m3fnuz", 1, ""),
        DType("float8_e5m2fnuz", 1, ""),
        DType("float8_e8m0fnu", 1, ""),
    )
}

FLOATING = ("float16", "bfloat16", "float32", "float64")

# The class that torch.save names for a storage, in `torch`, `torch.cuda` and `torch.storage`.
TORCH_STORAGES: dict[str, str] = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    # Untyped bytes: `_rebuild_tensor_v3` gives their element type.
    "UntypedStorage": "uint8",
}

SAFETENSORS_CODES: dict[str, str] = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
