// A device that stands for an accelerator: its memory is the host's, its operators are those of the CPU, and an operator
// that is given tensors of both raises, as it does with a real one. Reads of values by the host are counted.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <atomic>

namespace {

constexpr c10::DeviceType SIM = c10::DeviceType::PrivateUse1;
constexpr int DEVICES = 4;
thread_local c10::DeviceIndex current = 0;
std::atomic<int64_t> reads{0};
thread_local bool running = false;  // an operator, which copies as it likes

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
        return {data, data, &c10::free_cpu, c10::Device(SIM, current)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
    static constexpr c10::DeviceType static_type = SIM;
    c10::DeviceType type() const override { return SIM; }
    c10::Device exchangeDevice(c10::Device d) const override {
        c10::Device before(SIM, current);
        current = d.index();
        return before;
    }
    c10::Device getDevice() const override { return c10::Device(SIM, current); }
    void setDevice(c10::Device d) const override { current = d.index(); }
    void uncheckedSetDevice(c10::Device d) const noexcept override { current = d.index(); }
    c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
    c10::Stream getNewStream(c10::Device d, int) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
    c10::Stream exchangeStream(c10::Stream s) const override { return s; }
    c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
    void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    c10::DeviceIndex deviceCount() const override { return DEVICES; }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    void setCurrentDevice(c10::DeviceIndex d) const override { current = d; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex d) const override { return std::exchange(current, d); }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex d) const override { return std::exchange(current, d); }
};

c10::Device device_of(std::optional<c10::Device> device) {
    if (!device.has_value() || !device->has_index()) return c10::Device(SIM, current);
    return *device;
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    const c10::DeviceIndex before = std::exchange(current, device_of(device).index());
    auto made = at::detail::empty_generic(
        size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
        dtype.value_or(at::get_default_dtype_as_scalartype()), format);
    current = before;
    return made;
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
    const c10::DeviceIndex before = std::exchange(current, device_of(device).index());
    auto made = at::detail::empty_strided_generic(
        size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
        dtype.value_or(at::get_default_dtype_as_scalartype()));
    current = before;
    return made;
}

// The same memory, as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& t) {
    auto storage = c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                                c10::DataPtr(const_cast<void*>(t.storage().data()), c10::Device(c10::kCPU)), nullptr, false);
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.is_conj()) made._set_conj(true);
    if (t.is_neg()) made._set_neg(true);
    return made;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
    const bool from_device = self.device().type() == SIM;
    if (from_device && to.device().type() != SIM && !running) ++reads;
    auto target = to.device().type() == SIM ? on_host(to) : to;
    target.copy_(from_device ? on_host(self) : self);
    return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
    to.resize_(self.sizes());
    return copy_from(self, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
    if (!running) ++reads;
    return on_host(self).item();
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
    return at::cpu::as_strided(self, size, stride, offset);
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
    return at::cpu::as_strided(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
    auto sizes = C10_AS_INTARRAYREF_SLOW(size);
    if (self.sizes() == sizes) return self;
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_sizes_contiguous(sizes);
    const size_t bytes = (impl->numel() + impl->storage_offset()) * self.dtype().itemsize();
    if (bytes > self.storage().nbytes()) {
        const c10::DeviceIndex before = std::exchange(current, self.device().index());
        auto data = allocator.allocate(bytes);
        current = before;
        if (self.storage().nbytes()) std::memcpy(data.get(), self.storage().data(), self.storage().nbytes());
        self.storage().unsafeGetStorageImpl()->set_data_ptr(std::move(data));
        self.storage().unsafeGetStorageImpl()->set_nbytes(bytes);
    }
    return self;
}

at::Tensor& set_source(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
    return at::cpu::set_(self, source, offset, size, stride);
}

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
    const int64_t numbers = source.nbytes() / self.dtype().itemsize();
    return set_source(self, std::move(source), 0, {numbers}, {});
}

// A tensor of the CPU, as one of the device: the same memory, and strides as the operator left them.
at::Tensor on_device(const at::Tensor& t, c10::Device device) {
    auto* held = new at::Tensor(t);
    auto release = [](void* context) { delete static_cast<at::Tensor*>(context); };
    c10::DataPtr data(const_cast<void*>(t.storage().data()), held, release, device);
    auto storage = c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), &allocator, true);
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), t.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.is_conj()) made._set_conj(true);
    if (t.is_neg()) made._set_neg(true);
    return made;
}

// Run an operator of the CPU. What it is given has to be on one device, but for numbers.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const auto count = schema.arguments().size(), begin = stack->size() - count;
    const std::vector<c10::IValue> given(stack->begin() + begin, stack->end());
    bool host = false, device = false, other = false, resizes = false;
    c10::Device target(SIM, current), first = target;
    auto moved = [&](const at::Tensor& t) {
        if (!t.defined()) return t;
        host |= t.device().type() == c10::kCPU && t.dim() > 0;
        if (t.device().type() != SIM) return t;
        if (!std::exchange(device, true)) target = first = t.device();
        other |= t.device() != first;
        return on_host(t);
    };
    for (size_t i = 0; i < count; ++i) {
        const auto& argument = schema.arguments()[i];
        auto& value = (*stack)[begin + i];
        resizes |= argument.kwarg_only() && argument.alias_info() && argument.alias_info()->isWrite();
        if (value.isTensor()) {
            value = moved(value.toTensor());
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor& t : value.toTensorList()) list.push_back(moved(t));
            value = list;
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<at::Tensor>> list;
            for (const std::optional<at::Tensor>& t : value.toOptionalTensorList())
                list.push_back(t.has_value() ? std::optional<at::Tensor>(moved(*t)) : std::nullopt);
            value = list;
        } else if (value.isDevice() && value.toDevice().type() == SIM) {
            target = device_of(value.toDevice());
            value = c10::Device(c10::kCPU);
        }
    }
    TORCH_CHECK(!(host && device) && !other, schema.name(),
                ": expected all tensors to be on the same device, but found at least two, ", first, " and ",
                host ? "cpu" : "another sim");
    const std::string name = schema.name();
    if (name == "aten::nonzero" || name == "aten::_unique2" || name == "aten::equal") ++reads;
    const bool before = std::exchange(running, true);
    try {
        if (resizes) {  // results that are given: torch's own way knows what to do if they grow
            stack->erase(stack->begin() + begin, stack->end());
            stack->insert(stack->end(), given.begin(), given.end());
            at::native::cpu_fallback(op, stack, false, c10::DispatchKey::CPU);
        } else {
            op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
        }
    } catch (...) {
        running = before;
        throw;
    }
    running = before;
    if (resizes) return;
    const auto results = stack->size() - schema.returns().size();
    for (size_t i = 0; i < schema.returns().size(); ++i) {
        auto& value = (*stack)[results + i];
        const auto* alias = schema.returns()[i].alias_info();
        if (alias && alias->isWrite()) {  // an operand that was changed in place
            for (size_t k = 0; k < count; ++k) {
                const auto* other = schema.arguments()[k].alias_info();
                if (other && other->isWrite() && given[k].isTensor() && *other == *alias) value = given[k];
            }
        } else if (value.isTensor() && value.toTensor().defined() && value.toTensor().device().type() == c10::kCPU) {
            value = on_device(value.toTensor(), target);
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor& t : value.toTensorList()) list.push_back(on_device(t, target));
            value = list;
        }
    }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("_local_scalar_dense", &local_scalar);
    m.impl("as_strided", &as_strided);
    m.impl("view", &view);
    m.impl("_reshape_alias", &reshape_alias);
    m.impl("unfold", &at::native::unfold);
    m.impl("view_as_real", &at::native::view_as_real);
    m.impl("view_as_complex", &at::native::view_as_complex);
    m.impl("resize_", &resize_);
    m.impl("set_.source_Storage", &set_whole);
    m.impl("set_.source_Storage_storage_offset", &set_source);
}

TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    c10::SetAllocator(SIM, &allocator);
    at::RegisterPrivateUse1HooksInterface(new Hooks);
    m.def("reads", [] { return reads.load(); });
    m.def("current", [] { return (int)current; });
    m.def("use", [](int i) { current = i; });
}
