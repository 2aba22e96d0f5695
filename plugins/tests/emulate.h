// What crelu.cu does, thread by thread on the host: the same choice of kernel, the same body.
#pragma once

#include "../crelu.h"

//! Run a whole grid. \return The bytes of a vector, negative where indices have 64 bits; 0: no such
//! type.
inline int32_t emulate(crelu::Type type, void const* x, void* y, crelu::Rows rows)
{
    auto const run = [x, y](auto vector, crelu::Rows vectors, auto index)
    {
        using V = decltype(vector);
        using Index = decltype(index);
        auto const count = static_cast<Index>(vectors.elements());
        for (Index i = 0; i < count; ++i)
        {
            crelu::step(
                static_cast<V const*>(x), static_cast<V*>(y), i, static_cast<Index>(vectors.row));
        }
        auto const bytes = static_cast<int32_t>(sizeof(V));
        return sizeof(Index) == 4 ? bytes : -bytes;
    };
    return crelu::choose(type, x, y, rows, run, int32_t{0});
}
