// The CUDA side of crelu.h for callers that are not compiled by nvcc.
#pragma once

#include "crelu.h"

#include <cuda_runtime_api.h>

namespace crelu
{

//! Enqueue y[outer, 2, row] = CReLU(x[outer, row]) on stream.
//!
//! \param x Device memory, aligned to its type, rows.elements() values.
//! \param y Device memory, aligned to its type, twice as many values, apart from x.
//! \return What the launch returned; cudaSuccess for an empty tensor.
cudaError_t launch(Type type, void const* x, void* y, Rows rows, cudaStream_t stream);

} // namespace crelu
