// Calls a CReLU plugin as TensorRT's builder and runtime do, for tests/test_plugins.py. Expressions
// of extents are a stub that computes; everything else is TensorRT's own.
#include <NvInfer.h>

#include <array>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <string>

using namespace nvinfer1;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace
{

constexpr int64_t kUNKNOWN{-1};

// --- stubs --------------------------------------------------------------------------------------

//! An extent; kUNKNOWN: known at run time only.
class Extent final : public IDimensionExpr
{
public:
    explicit Extent(int64_t value)
        : mValue{value}
    {
        mImpl = &mValue;
    }

    int64_t value() const
    {
        return mValue.value;
    }

private:
    struct Value final : apiv::VDimensionExpr
    {
        explicit Value(int64_t v)
            : value{v}
        {
        }

        bool isConstant() const noexcept override
        {
            return value != kUNKNOWN;
        }

        int64_t getConstantValue() const noexcept override
        {
            return value;
        }

        bool isSizeTensor() const noexcept override
        {
            return false;
        }

        int64_t value;
    };

    Value mValue;
};

class Builder final : public IExprBuilder
{
public:
    Builder()
    {
        mImpl = &mMaker;
    }

    IDimensionExpr const* extent(int64_t value)
    {
        return mMaker.constant(value);
    }

private:
    struct Maker final : apiv::VExprBuilder
    {
        IDimensionExpr const* constant(int64_t value) noexcept override
        {
            return &made.emplace_back(value);
        }

        IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
            IDimensionExpr const& second) noexcept override
        {
            int64_t const a = static_cast<Extent const&>(first).value();
            int64_t const b = static_cast<Extent const&>(second).value();
            bool const isKnown = a != kUNKNOWN && b != kUNKNOWN;
            return op == DimensionOperation::kPROD ? constant(isKnown ? a * b : kUNKNOWN) : nullptr;
        }

        IDimensionExpr const* declareSizeTensor(
            int32_t, IDimensionExpr const&, IDimensionExpr const&) noexcept override
        {
            return nullptr;
        }

        std::deque<Extent> made;
    };

    Maker mMaker;
};

//! Keeps what the plugin last said.
class Recorder final : public ILogger, public ILoggerFinder
{
public:
    void log(Severity, AsciiChar const* message) noexcept override
    {
        last = message;
    }

    ILogger* findLogger() override
    {
        return this;
    }

    std::string last;
};

Recorder gRecorder;

PluginTensorDesc describe(
    int32_t type, int32_t format, int32_t rank, int64_t const* dims, float scale)
{
    PluginTensorDesc desc{};
    desc.type = static_cast<DataType>(type);
    desc.format = static_cast<TensorFormat>(format);
    desc.scale = scale;
    desc.dims.nbDims = rank;
    std::copy(dims, dims + rank, desc.dims.d);
    return desc;
}

template <typename Capability>
Capability* as(void* plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

IPluginV3OneBuild* build(void* plugin)
{
    return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime* runtime(void* plugin)
{
    return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

} // namespace

// --- creators -----------------------------------------------------------------------------------

//! The library's only creator, whose messages said() returns from now on.
EXPORT void* creator_of(char const* path)
{
    using Get = IPluginCreatorInterface* const* (*)(int32_t&);
    using Set = void (*)(ILoggerFinder*);
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        gRecorder.last = dlerror();
        return nullptr;
    }
    reinterpret_cast<Set>(dlsym(library, "setLoggerFinder"))(&gRecorder);
    int32_t count{};
    auto* const creators = reinterpret_cast<Get>(dlsym(library, "getCreators"))(count);
    return count == 1 ? static_cast<IPluginCreatorV3One*>(creators[0]) : nullptr;
}

EXPORT char const* said()
{
    return gRecorder.last.c_str();
}

// --- plugins ------------------------------------------------------------------------------------

//! \param type 32: kINT32; 64: kINT64; 0: kFLOAT32.
EXPORT void* create(void* creator, char const* name, int32_t type, int64_t value, int32_t length)
{
    auto const narrow = static_cast<int32_t>(value);
    PluginField field{name, &value, PluginFieldType::kINT64, length};
    if (type != 64)
    {
        field = {name, &narrow, type == 32 ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32,
            length};
    }
    PluginFieldCollection const fields{1, &field};
    return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
        "node", &fields, TensorRTPhase::kBUILD);
}

EXPORT void* create_without_fields(void* creator)
{
    PluginFieldCollection const fields{0, nullptr};
    return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
        "node", &fields, TensorRTPhase::kBUILD);
}

//! What an engine does: write the fields, make the plugin again from them.
EXPORT void* revive(void* creator, void* plugin)
{
    PluginFieldCollection const* const fields = runtime(plugin)->getFieldsToSerialize();
    return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
        "node", fields, TensorRTPhase::kRUNTIME);
}

EXPORT void* clone(void* plugin)
{
    return static_cast<IPluginV3*>(plugin)->clone();
}

EXPORT void* attach(void* plugin)
{
    return runtime(plugin)->attachToContext(nullptr);
}

EXPORT void destroy(void* plugin)
{
    delete static_cast<IPluginV3*>(plugin);
}

EXPORT char const* timing_cache_id(void* plugin)
{
    return build(plugin)->getTimingCacheID();
}

//! \return Whether the output's shape was made; out holds it.
EXPORT int32_t output_shape(void* plugin, int32_t rank, int64_t const* dims, int64_t* out)
{
    Builder builder;
    DimsExprs input{};
    DimsExprs output{};
    input.nbDims = rank;
    for (int32_t i = 0; i < rank; ++i)
    {
        input.d[i] = builder.extent(dims[i]);
    }
    if (build(plugin)->getOutputShapes(&input, 1, nullptr, 0, &output, 1, builder) != 0)
    {
        return 0;
    }
    for (int32_t i = 0; i < output.nbDims; ++i)
    {
        out[i] = static_cast<Extent const*>(output.d[i])->value();
    }
    return output.nbDims == rank ? 1 : 0;
}

EXPORT int32_t output_type(void* plugin, int32_t type)
{
    auto const input = static_cast<DataType>(type);
    DataType output{};
    return build(plugin)->getOutputDataTypes(&output, 1, &input, 1) == 0
               ? static_cast<int32_t>(output)
               : -1;
}

//! \param io The input's type and format, then the output's.
EXPORT int32_t supports(
    void* plugin, int32_t pos, int32_t rank, int64_t const* dims, int32_t const* io)
{
    std::array<DynamicPluginTensorDesc, 2> tensors{};
    tensors[0].desc = describe(io[0], io[1], rank, dims, 1.F);
    tensors[1].desc = describe(io[2], io[3], rank, dims, 1.F);
    return build(plugin)->supportsFormatCombination(pos, tensors.data(), 1, 1) ? 1 : 0;
}

//! \param scales The input's and the output's. \return As enqueue(), or -1 where the shape was
//! refused.
EXPORT int32_t enqueue(void* plugin, int32_t type, int32_t format, int32_t rank,
    int64_t const* dims, float const* scales, void const* x, void* y)
{
    PluginTensorDesc const input = describe(type, format, rank, dims, scales[0]);
    PluginTensorDesc const output = describe(type, format, rank, dims, scales[1]);
    if (runtime(plugin)->onShapeChange(&input, 1, &output, 1) != 0)
    {
        return -1;
    }
    return runtime(plugin)->enqueue(&input, &output, &x, &y, nullptr, nullptr);
}
