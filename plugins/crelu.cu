// The CUDA kernel and its launcher; what a thread does and which kernel runs is in crelu.h.
#include "crelu_cuda.h"

namespace crelu
{
namespace
{

template <typename V, typename Index>
__global__ void __launch_bounds__(kTHREADS)
    kernel(V const* __restrict__ x, V* __restrict__ y, Index vectors, Index row)
{
    Index const i = Index{blockIdx.x} * kTHREADS + threadIdx.x;
    if (i < vectors)
    {
        step(x, y, i, row);
    }
}

} // namespace

cudaError_t launch(Type type, void const* x, void* y, Rows rows, cudaStream_t stream)
{
    if (rows.elements() == 0)
    {
        return cudaSuccess;
    }
    auto const run = [x, y, stream](auto vector, Rows vectors, auto index)
    {
        using V = decltype(vector);
        using Index = decltype(index);
        int64_t const blocks = (vectors.elements() + kTHREADS - 1) / kTHREADS;
        if (blocks > INT32_MAX) // a grid has no more
        {
            return cudaErrorInvalidConfiguration;
        }
        kernel<V, Index><<<static_cast<uint32_t>(blocks), kTHREADS, 0, stream>>>(
            static_cast<V const*>(x), static_cast<V*>(y), static_cast<Index>(vectors.elements()),
            static_cast<Index>(vectors.row));
        return cudaGetLastError();
    };
    return choose(type, x, y, rows, run, cudaErrorInvalidValue);
}

} // namespace crelu
