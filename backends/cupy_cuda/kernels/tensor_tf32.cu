// Convolutions by tensor cores in TF32: 10 bits of mantissa, the range of float32 (`tensor.cuh`).
#include "tensor.cuh"

KERNEL(tensor_windows_tf32, TensorWindows, 128) { write_windows<false>(a); }
KERNEL(combined_rows_tf32, CombinedRows, 128) {
  __shared__ Kept kept;
  write_combined<false>(a, kept);
}

KERNEL(tensor_tf32_128x128, TensorProduct, 256) { TENSOR(false, 128, 128, 64, 32); }
KERNEL(tensor_tf32_64x64, TensorProduct, 128) { TENSOR(false, 64, 64, 32, 32); }
KERNEL(tensor_tf32_32x64, TensorProduct, 128) { TENSOR(false, 32, 64, 32, 16); }
KERNEL(tensor_tf32_16x64, TensorProduct, 128) { TENSOR(false, 16, 64, 16, 16); }
