// The kernel of crelu.h as PTX that an engine carries: the entries for plugin_aot.py.
//
// TensorRT passes the addresses of inputs, then 32-bit numbers, then the addresses of outputs. How
// wide the loads may be is decided here, on the device: when the engine is built, neither addresses
// nor every extent are known.
#include "crelu.h"

namespace crelu
{
namespace
{

__device__ bool isAligned(void const* address)
{
    return reinterpret_cast<uintptr_t>(address) % kBYTES == 0;
}

//! Each block owns kTHREADS vectors' worth of elements: as vectors, or one by one.
template <typename T>
__device__ void run(T const* x, int32_t elements, int32_t row, T* y)
{
    constexpr uint32_t kWIDTH = kBYTES / sizeof(T);
    using Wide = Vector<T, kWIDTH>;
    using One = Vector<T, 1>;
    auto const count = static_cast<uint32_t>(elements);
    auto const length = static_cast<uint32_t>(row);
    if (length % kWIDTH == 0 && isAligned(x) && isAligned(y))
    {
        uint32_t const i = blockIdx.x * kTHREADS + threadIdx.x;
        if (i < count / kWIDTH)
        {
            step(reinterpret_cast<Wide const*>(x), reinterpret_cast<Wide*>(y), i, length / kWIDTH);
        }
        return;
    }
    for (uint32_t k = 0; k < kWIDTH; ++k)
    {
        uint32_t const i = (blockIdx.x * kWIDTH + k) * kTHREADS + threadIdx.x;
        if (i < count)
        {
            step(reinterpret_cast<One const*>(x), reinterpret_cast<One*>(y), i, length);
        }
    }
}

} // namespace
} // namespace crelu

#define CRELU_ENTRY(name, T)                                                                       \
    extern "C" __global__ void __launch_bounds__(crelu::kTHREADS)                                  \
        name(crelu::T const* x, int32_t elements, int32_t row, crelu::T* y)                        \
    {                                                                                              \
        crelu::run(x, elements, row, y);                                                           \
    }

CRELU_ENTRY(crelu_float32, Float32)
CRELU_ENTRY(crelu_float16, Float16)
CRELU_ENTRY(crelu_bfloat16, BFloat16)
