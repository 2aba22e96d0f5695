// In which types and memory formats of TensorRT a CReLU is a plain [outer, row] copy.
#pragma once

#include "crelu.h"

#include <NvInferRuntime.h>

#include <array>

namespace crelu
{

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr uint32_t mask(DataType type)
{
    return uint32_t{1} << static_cast<int32_t>(type);
}

constexpr uint32_t kF32 = mask(DataType::kFLOAT);
constexpr uint32_t kF16 = mask(DataType::kHALF);
constexpr uint32_t kBF16 = mask(DataType::kBF16);
constexpr uint32_t kI8 = mask(DataType::kINT8);

//! One memory format in which CReLU is a plain [outer, row] copy.
struct Layout
{
    TensorFormat format;
    uint32_t types;      //!< the types that TensorRT has in this format
    int32_t spatial;     //!< axes behind the channels; kANY_AXIS: CReLU may double any axis
    int32_t vector;      //!< channels are padded to a multiple of this, which must be none
    bool isChannelsLast; //!< else [C / vector] stands where C stood, and [vector] stands last
};

constexpr int32_t kANY_AXIS{-1};

constexpr std::array<Layout, 10> kLAYOUTS{{
    {TensorFormat::kLINEAR, kF32 | kF16 | kBF16 | kI8, kANY_AXIS, 1, false},
    {TensorFormat::kHWC, kF32, 2, 1, true},
    {TensorFormat::kHWC8, kF16 | kBF16, 2, 8, true},
    {TensorFormat::kHWC16, kF16 | kI8, 2, 16, true},
    {TensorFormat::kDHWC, kF32, 3, 1, true},
    {TensorFormat::kDHWC8, kF16 | kBF16, 3, 8, true},
    {TensorFormat::kCHW2, kF16 | kBF16, 2, 2, false},
    {TensorFormat::kCHW4, kI8, 2, 4, false},
    {TensorFormat::kCHW32, kF32 | kF16 | kI8, 2, 32, false},
    {TensorFormat::kCDHW32, kF16 | kI8, 3, 32, false},
}};

//! \return The layout of a descriptor in which this axis can be doubled, or nullptr.
inline Layout const* findLayout(PluginTensorDesc const& desc, int64_t axis) noexcept
{
    int32_t const front = resolve(axis, desc.dims.nbDims);
    if (front < 0)
    {
        return nullptr;
    }
    for (Layout const& layout : kLAYOUTS)
    {
        if (layout.format == desc.format && (layout.types & mask(desc.type)) != 0)
        {
            bool const isChannel =
                layout.spatial == kANY_AXIS || front == desc.dims.nbDims - layout.spatial - 1;
            // An extent that is not known yet is -1: a multiple of 1 alone.
            return isChannel && desc.dims.d[front] % layout.vector == 0 ? &layout : nullptr;
        }
    }
    return nullptr;
}

inline bool convertType(DataType type, Type& out) noexcept
{
    switch (type)
    {
    case DataType::kFLOAT: out = Type::kFLOAT32; return true;
    case DataType::kHALF: out = Type::kFLOAT16; return true;
    case DataType::kBF16: out = Type::kBFLOAT16; return true;
    case DataType::kINT8: out = Type::kINT8; return true;
    default: return false;
    }
}

} // namespace crelu
