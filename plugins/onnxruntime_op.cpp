// CReLU for ONNX Runtime as a custom op of the node's own domain and name: where this library is
// registered, it runs in place of the ONNX function in the file. One kernel for the CPU provider,
// one for the CUDA provider where the library was built with CUDA.
//
// ONNX Runtime is reached through the table that it passes in; nothing of it is linked.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#ifdef CRELU_CUDA
#include "crelu_cuda.h"
#else
#include "crelu.h"
#endif

#include <algorithm>
#include <string>
#include <vector>

namespace
{

constexpr char const* kDOMAIN{"crelu_deploy"};
constexpr char const* kNAME{"CReLU"};
constexpr char const* kAXIS{"axis"};
constexpr uint32_t kAPI{17};       // the first with shape inference for custom ops
constexpr int64_t kCHUNK{1 << 15}; // elements that are worth a task of their own

//! Run call(); an exception becomes a status, since none may cross the C interface.
template <typename Call>
OrtStatusPtr guarded(Call call) noexcept
{
    try
    {
        call();
        return nullptr;
    }
    catch (Ort::Exception const& error)
    {
        return Ort::GetApi().CreateStatus(error.GetOrtErrorCode(), error.what());
    }
    catch (std::exception const& error)
    {
        return Ort::GetApi().CreateStatus(ORT_FAIL, error.what());
    }
}

//! \return The axis counted from the front. Throws where the tensor has no such axis.
size_t resolveAxis(int64_t axis, size_t rank)
{
    int32_t const front = crelu::resolve(axis, static_cast<int32_t>(rank));
    if (front < 0)
    {
        throw Ort::Exception("CReLU: axis " + std::to_string(axis) + " is outside rank "
                                 + std::to_string(rank) + " of its input",
            ORT_INVALID_ARGUMENT);
    }
    return static_cast<size_t>(front);
}

//! A type of elements by its three names.
template <typename Value, crelu::Type kType, ONNXTensorElementDataType kOnnx>
struct Element
{
    using T = Value;
    static constexpr crelu::Type kCRELU{kType};
    static constexpr ONNXTensorElementDataType kONNX{kOnnx};
};

using Float32 = Element<crelu::Float32, crelu::Type::kFLOAT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT>;
using Float16 =
    Element<crelu::Float16, crelu::Type::kFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16>;
using BFloat16 =
    Element<crelu::BFloat16, crelu::Type::kBFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16>;

//! A tensor and the place of its CReLU, in the terms of crelu.h.
struct Call
{
    void const* x;
    void* y;
    crelu::Rows rows;
};

template <typename T>
struct HostCall
{
    Call call;

    static void runChunk(void* self, size_t chunk) noexcept
    {
        Call const& call = static_cast<HostCall*>(self)->call;
        int64_t const begin = static_cast<int64_t>(chunk) * kCHUNK;
        int64_t const end = std::min(begin + kCHUNK, call.rows.elements());
        crelu::host(
            static_cast<T const*>(call.x), static_cast<T*>(call.y), call.rows.row, begin, end);
    }

    void run(Ort::KernelContext const& context)
    {
        auto const chunks = static_cast<size_t>((call.rows.elements() + kCHUNK - 1) / kCHUNK);
        if (chunks == 1)
        {
            runChunk(this, 0); // not worth waking a thread
        }
        else if (chunks > 1)
        {
            context.ParallelFor(runChunk, chunks, 0, this);
        }
    }
};

//! What a provider does with a call.
struct OnHost
{
    static constexpr char const* kPROVIDER{"CPUExecutionProvider"};

    template <typename E>
    static void run(Call const& call, Ort::KernelContext const& context)
    {
        HostCall<typename E::T>{call}.run(context);
    }
};

#ifdef CRELU_CUDA
struct OnCuda
{
    static constexpr char const* kPROVIDER{"CUDAExecutionProvider"};

    template <typename E>
    static void run(Call const& call, Ort::KernelContext const& context)
    {
        auto* const stream = static_cast<cudaStream_t>(context.GetGPUComputeStream());
        cudaError_t const status = crelu::launch(E::kCRELU, call.x, call.y, call.rows, stream);
        if (status != cudaSuccess)
        {
            throw Ort::Exception(std::string{"CReLU: "} + cudaGetErrorString(status), ORT_FAIL);
        }
    }
};
#endif

template <typename E, typename Provider>
struct Kernel
{
    int64_t axis;

    OrtStatusPtr ComputeV2(OrtKernelContext* raw) const noexcept
    {
        return guarded(
            [this, raw]
            {
                Ort::KernelContext const context{raw};
                Ort::ConstValue const x = context.GetInput(0);
                std::vector<int64_t> shape = x.GetTensorTypeAndShapeInfo().GetShape();
                size_t const front = resolveAxis(axis, shape.size());
                crelu::Rows const rows = crelu::denseRows(
                    shape.data(), static_cast<int32_t>(shape.size()), static_cast<int32_t>(front));
                shape[front] *= 2;
                Ort::UnownedValue y = context.GetOutput(0, shape);
                Provider::template run<E>(
                    {x.GetTensorRawData(), y.GetTensorMutableRawData(), rows}, context);
            });
    }
};

//! \return The integer attribute of the node whose output is inferred.
int64_t readAttribute(OrtShapeInferContext* context, char const* name)
{
    OrtApi const& api = Ort::GetApi();
    OrtOpAttr const* attribute{};
    int64_t value{};
    size_t size{};
    Ort::ThrowOnError(api.ShapeInferContext_GetAttribute(context, name, &attribute));
    Ort::ThrowOnError(api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof(value), &size));
    return value;
}

//! Declare the output's shape. An extent is a number or a name, and what has neither cannot be
//! declared: then the shape stays unknown. Twice N is named 2*N, never N.
void inferShape(OrtShapeInferContext* context)
{
    OrtApi const& api = Ort::GetApi();
    OrtTensorTypeAndShapeInfo* raw{};
    Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, 0, &raw));
    Ort::ConstTensorTypeAndShapeInfo const input{raw}; // its owner is the context
    std::vector<int64_t> shape = input.GetShape();
    std::vector<char const*> names(shape.size());
    input.GetSymbolicDimensions(names.data(), names.size());
    for (size_t i = 0; i < shape.size(); ++i)
    {
        if (shape[i] < 0 && *names[i] == '\0')
        {
            return;
        }
    }
    size_t const front = resolveAxis(readAttribute(context, kAXIS), shape.size());
    std::string const doubled = std::string{"2*"} + names[front];
    if (shape[front] < 0)
    {
        names[front] = doubled.c_str();
    }
    else
    {
        shape[front] *= 2;
    }
    Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&raw));
    Ort::TensorTypeAndShapeInfo const output{raw};
    Ort::ThrowOnError(api.SetTensorElementType(raw, input.GetElementType()));
    Ort::ThrowOnError(api.SetDimensions(raw, shape.data(), shape.size()));
    Ort::ThrowOnError(api.SetSymbolicDimensions(raw, names.data(), names.size()));
    Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, 0, raw));
}

template <typename E, typename Provider>
struct Op : Ort::CustomOpBase<Op<E, Provider>, Kernel<E, Provider>, true>
{
    Op()
    {
        OrtCustomOp::version = kAPI;
        OrtCustomOp::InferOutputShapeFn = [](OrtCustomOp const*, OrtShapeInferContext* context)
        { return guarded([context] { inferShape(context); }); };
    }

    OrtStatusPtr CreateKernelV2(
        OrtApi const&, OrtKernelInfo const* raw, void** kernel) const noexcept
    {
        return guarded(
            [raw, kernel]
            {
                int64_t const axis = Ort::ConstKernelInfo{raw}.GetAttribute<int64_t>(kAXIS);
                *kernel = new Kernel<E, Provider>{axis};
            });
    }

    char const* GetName() const noexcept
    {
        return kNAME;
    }

    char const* GetExecutionProviderType() const noexcept
    {
        return Provider::kPROVIDER;
    }

    size_t GetInputTypeCount() const noexcept
    {
        return 1;
    }

    ONNXTensorElementDataType GetInputType(size_t) const noexcept
    {
        return E::kONNX;
    }

    size_t GetOutputTypeCount() const noexcept
    {
        return 1;
    }

    ONNXTensorElementDataType GetOutputType(size_t) const noexcept
    {
        return E::kONNX;
    }
};

template <typename Provider>
void addOps(Ort::CustomOpDomain& domain)
{
    // A session keeps the addresses.
    static Op<Float32, Provider> const float32;
    static Op<Float16, Provider> const float16;
    static Op<BFloat16, Provider> const bfloat16;
    domain.Add(&float32);
    domain.Add(&float16);
    domain.Add(&bfloat16);
}

Ort::CustomOpDomain makeDomain()
{
    Ort::CustomOpDomain domain{kDOMAIN};
    addOps<OnHost>(domain);
#ifdef CRELU_CUDA
    addOps<OnCuda>(domain);
#endif
    return domain;
}

} // namespace

//! Called by ONNX Runtime for SessionOptions.register_custom_ops_library().
extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(
    OrtSessionOptions* options, OrtApiBase const* base) noexcept
{
    OrtApi const* const api = base->GetApi(kAPI);
    if (api == nullptr)
    {
        return base->GetApi(1)->CreateStatus(
            ORT_NOT_IMPLEMENTED, "CReLU needs ONNX Runtime 1.17 or newer");
    }
    Ort::InitApi(api);
    return guarded(
        [options]
        {
            static Ort::CustomOpDomain const domain = makeDomain(); // outlives every session
            Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
        });
}
