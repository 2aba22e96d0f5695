// CReLU for TensorRT 10 and 11 as an IPluginV3: it translates descriptors, crelu.h computes.
//
// TensorRT's own code enters through base classes, so that the library links no libnvinfer: the
// process that loads it brings one. Nothing here may throw, since every entry point is noexcept.
#include "crelu_cuda.h"
#include "tensorrt_layouts.h"

#include <NvInferRuntime.h>

#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <new>

using namespace nvinfer1;

namespace
{

constexpr char const* kNAME{"CReLU"};
constexpr char const* kVERSION{"1"};
constexpr char const* kNAMESPACE{"crelu_deploy"};
constexpr char const* kAXIS{"axis"};
constexpr int32_t kOK{0};
constexpr int32_t kFAILED{1};

ILoggerFinder* gLoggerFinder{nullptr};

template <typename... Args>
void logError(char const* format, Args... args) noexcept
{
    ILogger* const logger = gLoggerFinder == nullptr ? nullptr : gLoggerFinder->findLogger();
    if (logger == nullptr)
    {
        return;
    }
    std::array<char, 256> message{};
    std::snprintf(message.data(), message.size(), format, args...);
    logger->log(ILogger::Severity::kERROR, message.data());
}

// --- the plugin ---------------------------------------------------------------------------------

class CReLUPlugin final : public IPluginV3,
                          public IPluginV3OneCore,
                          public IPluginV3OneBuild,
                          public IPluginV3OneRuntime
{
public:
    explicit CReLUPlugin(int32_t axis) noexcept
        : mAxis{axis}
        , mField{kAXIS, &mAxis, PluginFieldType::kINT32, 1}
        , mFields{1, &mField}
    {
        std::snprintf(mTimingCacheId.data(), mTimingCacheId.size(), "axis=%" PRId32, axis);
    }

    // mField points into this object.
    CReLUPlugin(CReLUPlugin const&) = delete;
    CReLUPlugin& operator=(CReLUPlugin const&) = delete;

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override
    {
        return new (std::nothrow) CReLUPlugin(mAxis);
    }

    AsciiChar const* getPluginName() const noexcept override
    {
        return kNAME;
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return kVERSION;
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kNAMESPACE;
    }

    int32_t getNbOutputs() const noexcept override
    {
        return 1;
    }

    int32_t getOutputDataTypes(
        DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override
    {
        outputs[0] = inputs[0];
        return kOK;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
        DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& builder) noexcept override
    {
        if (!isOneToOne(nbInputs, nbOutputs))
        {
            return kFAILED;
        }
        int32_t const axis = crelu::resolve(mAxis, inputs[0].nbDims);
        if (axis < 0)
        {
            logError("CReLU: axis %" PRId32 " is outside rank %" PRId32 " of its input", mAxis,
                inputs[0].nbDims);
            return kFAILED;
        }
        outputs[0] = inputs[0];
        outputs[0].d[axis] =
            builder.operation(DimensionOperation::kPROD, *inputs[0].d[axis], *builder.constant(2));
        return kOK;
    }

    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut,
        int32_t nbInputs, int32_t nbOutputs) noexcept override
    {
        if (!isOneToOne(nbInputs, nbOutputs) || pos < 0 || pos > 1)
        {
            return false;
        }
        PluginTensorDesc const& in = inOut[0].desc;
        PluginTensorDesc const& asked = inOut[pos].desc;
        return crelu::findLayout(in, mAxis) != nullptr && asked.type == in.type
               && asked.format == in.format;
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
        int32_t) noexcept override
    {
        return kOK;
    }

    char const* getTimingCacheID() noexcept override
    {
        return mTimingCacheId.data();
    }

    int32_t onShapeChange(PluginTensorDesc const* inputs, int32_t nbInputs,
        PluginTensorDesc const* outputs, int32_t nbOutputs) noexcept override
    {
        crelu::Layout const* const layout =
            isOneToOne(nbInputs, nbOutputs) ? crelu::findLayout(inputs[0], mAxis) : nullptr;
        if (layout == nullptr || !crelu::convertType(inputs[0].type, mType))
        {
            logError("CReLU: axis %" PRId32 " cannot be doubled in type %" PRId32
                     " and format %" PRId32,
                mAxis, static_cast<int32_t>(inputs[0].type),
                static_cast<int32_t>(inputs[0].format));
            return kFAILED;
        }
        if (mType == crelu::Type::kINT8 && inputs[0].scale != outputs[0].scale)
        {
            logError("CReLU: int8 input has scale %g, output %g; they must be equal",
                static_cast<double>(inputs[0].scale), static_cast<double>(outputs[0].scale));
            return kFAILED;
        }
        Dims const& dims = inputs[0].dims;
        int32_t const axis = crelu::resolve(mAxis, dims.nbDims);
        // Where whole vectors of channels stand last, they are contiguous from the channel axis on.
        mRows = layout->isChannelsLast ? crelu::channelsLastRows(dims.d, dims.nbDims, axis)
                                       : crelu::denseRows(dims.d, dims.nbDims, axis);
        return kOK;
    }

    int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override
    {
        cudaError_t const status = crelu::launch(mType, inputs[0], outputs[0], mRows, stream);
        if (status != cudaSuccess)
        {
            logError("CReLU: %s", cudaGetErrorString(status));
        }
        return static_cast<int32_t>(status);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override
    {
        return clone();
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return &mFields;
    }

private:
    static bool isOneToOne(int32_t nbInputs, int32_t nbOutputs) noexcept
    {
        return nbInputs == 1 && nbOutputs == 1;
    }

    int32_t mAxis;
    PluginField mField;
    PluginFieldCollection mFields;
    std::array<char, 24> mTimingCacheId{};
    // Set by onShapeChange(), which comes before the first enqueue().
    crelu::Type mType{};
    crelu::Rows mRows{};
};

// --- the creator --------------------------------------------------------------------------------

//! Read an integer field. \return Whether it is one that fits in 32 bits.
bool readInteger(PluginField const& field, int32_t& value) noexcept
{
    if (field.data == nullptr || field.length != 1)
    {
        return false;
    }
    int64_t wide{};
    switch (field.type)
    {
    case PluginFieldType::kINT32: wide = *static_cast<int32_t const*>(field.data); break;
    case PluginFieldType::kINT64: wide = *static_cast<int64_t const*>(field.data); break;
    default: return false;
    }
    value = static_cast<int32_t>(wide);
    return value == wide;
}

class CReLUCreator final : public IPluginCreatorV3One
{
public:
    IPluginV3* createPlugin(
        AsciiChar const* name, PluginFieldCollection const* fields, TensorRTPhase) noexcept override
    {
        for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i)
        {
            PluginField const& field = fields->fields[i];
            int32_t axis{};
            if (std::strcmp(field.name, kAXIS) != 0)
            {
                continue;
            }
            if (!readInteger(field, axis))
            {
                logError("CReLU %s: field axis must be one 32-bit or 64-bit integer", name);
                return nullptr;
            }
            return new (std::nothrow) CReLUPlugin(axis);
        }
        logError("CReLU %s: field axis is missing", name);
        return nullptr;
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mFields;
    }

    AsciiChar const* getPluginName() const noexcept override
    {
        return kNAME;
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return kVERSION;
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kNAMESPACE;
    }

private:
    PluginField mField{kAXIS, nullptr, PluginFieldType::kINT32, 1};
    PluginFieldCollection mFields{1, &mField};
};

} // namespace

#define CRELU_EXPORT extern "C" __attribute__((visibility("default")))

//! Called by TensorRT when it loads the library: where to find the logger of the calling thread.
CRELU_EXPORT void setLoggerFinder(ILoggerFinder* finder)
{
    gLoggerFinder = finder;
}

//! Called by IPluginRegistry::loadLibrary().
CRELU_EXPORT IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    static CReLUCreator creator;
    static IPluginCreatorInterface* const creators[]{&creator};
    nbCreators = 1;
    return creators;
}
