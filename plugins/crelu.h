// What CReLU does to memory, for the host and for CUDA: no SDK header, no framework.
//
// A contiguous tensor and an axis are x[outer, row] -> y[outer, 2, row]. A channels-last layout is
// the same with row = C. So nothing below knows of ranks, axes or formats, but for the two
// functions that make Rows out of extents.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define CRELU_HD __host__ __device__
#else
#define CRELU_HD
#endif

namespace crelu
{

// --- values -------------------------------------------------------------------------------------

//! An IEEE-like number by its bits: sign, then magnitude; above kINFINITY the magnitude is a NaN.
//! Comparing bits instead of values keeps every NaN as it is, on each machine alike.
template <typename Word, Word kINFINITY>
struct Float
{
    static constexpr Word kSIGN = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));

    Word bits;

    CRELU_HD constexpr bool isNan() const
    {
        return static_cast<Word>(bits & ~kSIGN) > kINFINITY;
    }

    CRELU_HD constexpr Float operator-() const
    {
        return {static_cast<Word>(bits ^ kSIGN)};
    }
};

using Float32 = Float<uint32_t, 0x7f800000>;
using Float16 = Float<uint16_t, 0x7c00>;
using BFloat16 = Float<uint16_t, 0x7f80>;

//! A quantised value, zero point 0: y has the scale of x.
struct Int8
{
    int8_t value;

    //! -(-128) does not exist in int8: it saturates, as quantising +128 does.
    CRELU_HD constexpr Int8 operator-() const
    {
        return {static_cast<int8_t>(value == INT8_MIN ? INT8_MAX : -value)};
    }
};

//! v where v > 0 or v is a NaN, else +0: what torch.relu gives, and fmaxf(v, 0) does not.
template <typename Word, Word kINFINITY>
CRELU_HD constexpr Float<Word, kINFINITY> relu(Float<Word, kINFINITY> v)
{
    return v.bits < v.kSIGN || v.isNan() ? v : Float<Word, kINFINITY>{0};
}

CRELU_HD constexpr Int8 relu(Int8 v)
{
    return v.value < 0 ? Int8{0} : v;
}

enum class Type : int32_t
{
    kFLOAT32 = 0,
    kFLOAT16 = 1,
    kBFLOAT16 = 2,
    kINT8 = 3,
};

// --- indices ------------------------------------------------------------------------------------

//! The extents of x as [outer, row], in elements.
struct Rows
{
    int64_t outer{0};
    int64_t row{0};

    constexpr int64_t elements() const
    {
        return outer * row;
    }
};

//! \return The axis counted from the front, or -1 where a tensor of this rank has no such axis.
constexpr int32_t resolve(int64_t axis, int32_t rank)
{
    int64_t const front = axis < 0 ? axis + rank : axis;
    return front >= 0 && front < rank ? static_cast<int32_t>(front) : -1;
}

//! Rows of a dense tensor in which the extents from axis on are contiguous.
constexpr Rows denseRows(int64_t const* dims, int32_t rank, int32_t axis)
{
    Rows rows{1, 1};
    for (int32_t i = 0; i < rank; ++i)
    {
        (i < axis ? rows.outer : rows.row) *= dims[i];
    }
    return rows;
}

//! Rows of a tensor in which axis is stored last, without padding: one row for each pixel.
constexpr Rows channelsLastRows(int64_t const* dims, int32_t rank, int32_t axis)
{
    Rows rows{1, dims[axis]};
    for (int32_t i = 0; i < rank; ++i)
    {
        rows.outer *= i == axis ? 1 : dims[i];
    }
    return rows;
}

//! Where vector i of x goes in y, both counted in vectors; the negated one goes one row further.
//! i and row may be 32 bits wide, y has up to twice as many vectors as an index can count.
template <typename Index>
CRELU_HD constexpr size_t target(Index i, Index row)
{
    return size_t{i} + size_t{i / row} * row;
}

// --- the kernel's body --------------------------------------------------------------------------

//! Elements that move in one load or store; alignas is what makes that one instruction.
template <typename T, int32_t kWIDTH>
struct alignas(sizeof(T) * kWIDTH) Vector
{
    T v[kWIDTH];
};

//! What thread i does: read one vector of x, write its two images.
template <typename T, int32_t kWIDTH, typename Index>
CRELU_HD inline void step(Vector<T, kWIDTH> const* x, Vector<T, kWIDTH>* y, Index i, Index row)
{
    Vector<T, kWIDTH> const in = x[i];
    Vector<T, kWIDTH> positive;
    Vector<T, kWIDTH> negative;
    for (int32_t k = 0; k < kWIDTH; ++k)
    {
        positive.v[k] = relu(in.v[k]);
        negative.v[k] = relu(-in.v[k]);
    }
    size_t const at = target(i, row);
    y[at] = positive;
    y[at + row] = negative;
}

// --- which kernel -------------------------------------------------------------------------------

constexpr int32_t kTHREADS = 256;
constexpr int32_t kBYTES = 16; // the widest load there is

//! The most bytes, at most kBYTES, that divide both addresses and the length of a row.
inline int32_t widest(void const* x, void const* y, int64_t rowBytes)
{
    uint64_t const bits = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)
                          | static_cast<uint64_t>(rowBytes) | uint64_t{kBYTES};
    return static_cast<int32_t>(bits & (~bits + 1));
}

template <typename T, int32_t kWIDTH, typename Use>
auto useVector(int32_t bytes, Rows rows, Use use)
{
    if constexpr (kWIDTH > 1)
    {
        if (bytes < static_cast<int32_t>(sizeof(T)) * kWIDTH)
        {
            return useVector<T, kWIDTH / 2>(bytes, rows, use);
        }
    }
    Rows const vectors{rows.outer, rows.row / kWIDTH};
    // 32-bit division is several times cheaper; half the range leaves room for the last block.
    bool const narrow = vectors.elements() <= INT32_MAX;
    using Moved = Vector<T, kWIDTH>;
    return narrow ? use(Moved{}, vectors, uint32_t{}) : use(Moved{}, vectors, uint64_t{});
}

//! Call use(Vector{}, rows in vectors, Index{}) with the types that suit these addresses and sizes.
//! \param failure Returned for a type that does not exist.
template <typename Use, typename Result>
Result choose(Type type, void const* x, void const* y, Rows rows, Use use, Result failure)
{
    switch (type)
    {
    case Type::kFLOAT32: return useVector<Float32, 4>(widest(x, y, rows.row * 4), rows, use);
    case Type::kFLOAT16: return useVector<Float16, 8>(widest(x, y, rows.row * 2), rows, use);
    case Type::kBFLOAT16: return useVector<BFloat16, 8>(widest(x, y, rows.row * 2), rows, use);
    case Type::kINT8: return useVector<Int8, 16>(widest(x, y, rows.row), rows, use);
    }
    return failure;
}

// --- the host -----------------------------------------------------------------------------------

//! Elements [begin, end) of x on the calling thread; ranges may be given to threads.
template <typename T>
void host(T const* __restrict x, T* __restrict y, int64_t row, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end;)
    {
        int64_t const outer = i / row;
        int64_t const count = std::min(end, (outer + 1) * row) - i;
        T const* const in = x + i;
        T* __restrict positive = y + i + outer * row;
        T* __restrict negative = positive + row;
        for (int64_t k = 0; k < count; ++k)
        {
            positive[k] = relu(in[k]);
            negative[k] = relu(-in[k]);
        }
        i += count;
    }
}

} // namespace crelu
