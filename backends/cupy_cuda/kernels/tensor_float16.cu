// Convolutions by tensor cores in float16: 10 bits of mantissa, finite up to 65504 (`tensor.cuh`).
#include "tensor.cuh"

KERNEL(tensor_windows_float16, TensorWindows, 128) { write_windows<true>(a); }
KERNEL(combined_rows_float16, CombinedRows, 128) {
  __shared__ Kept kept;
  write_combined<true>(a, kept);
}

KERNEL(tensor_float16_128x128, TensorProduct, 256) { TENSOR(true, 128, 128, 64, 32); }
KERNEL(tensor_float16_64x64, TensorProduct, 128) { TENSOR(true, 64, 64, 32, 32); }
KERNEL(tensor_float16_32x64, TensorProduct, 128) { TENSOR(true, 32, 64, 32, 16); }
KERNEL(tensor_float16_16x64, TensorProduct, 128) { TENSOR(true, 16, 64, 16, 16); }
