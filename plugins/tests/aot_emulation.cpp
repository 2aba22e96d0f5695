// crelu_aot.cu on the host, a thread after another, for tests/test_plugin_aot.py.
#include <cstdint>

#define __device__
#define __global__
#define __launch_bounds__(threads)

namespace
{

struct Index
{
    uint32_t x;
};

Index blockIdx{};
Index threadIdx{};

} // namespace

#include "../crelu_aot.cu"

//! Launch an entry of this file: a grid and a block of one dimension.
extern "C" void run_grid(void (*entry)(void const*, int32_t, int32_t, void*), uint32_t grid,
    uint32_t block, void const* x, int32_t elements, int32_t row, void* y)
{
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
    {
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
        {
            entry(x, elements, row, y);
        }
    }
}
