// crelu.h behind C functions, for tests/test_plugins.py: needs a C++ compiler and nothing else.
#include "emulate.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

//! \return As emulate().
EXPORT int32_t run_kernel(int32_t type, void const* x, void* y, int64_t outer, int64_t row)
{
    return emulate(static_cast<crelu::Type>(type), x, y, {outer, row});
}

//! The kernel that such addresses and sizes get, which is not run. \return As emulate().
EXPORT int32_t choose_kernel(int32_t type, void const* x, void const* y, int64_t outer, int64_t row)
{
    auto const name = [](auto vector, crelu::Rows, auto index)
    {
        auto const bytes = static_cast<int32_t>(sizeof(vector));
        return sizeof(index) == 4 ? bytes : -bytes;
    };
    return crelu::choose(static_cast<crelu::Type>(type), x, y, {outer, row}, name, int32_t{0});
}

EXPORT uint64_t target32(uint32_t i, uint32_t row)
{
    return crelu::target(i, row);
}

EXPORT uint64_t target64(uint64_t i, uint64_t row)
{
    return crelu::target(i, row);
}

EXPORT int32_t resolve_axis(int64_t axis, int32_t rank)
{
    return crelu::resolve(axis, rank);
}

namespace
{

template <typename T>
void runRange(void const* x, void* y, int64_t row, int64_t begin, int64_t end)
{
    crelu::host(static_cast<T const*>(x), static_cast<T*>(y), row, begin, end);
}

} // namespace

//! Elements [begin, end) with the loop of the CPU provider.
EXPORT void run_host(int32_t type, void const* x, void* y, int64_t row, int64_t begin, int64_t end)
{
    switch (static_cast<crelu::Type>(type))
    {
    case crelu::Type::kFLOAT32: return runRange<crelu::Float32>(x, y, row, begin, end);
    case crelu::Type::kFLOAT16: return runRange<crelu::Float16>(x, y, row, begin, end);
    case crelu::Type::kBFLOAT16: return runRange<crelu::BFloat16>(x, y, row, begin, end);
    case crelu::Type::kINT8: return runRange<crelu::Int8>(x, y, row, begin, end);
    }
}
