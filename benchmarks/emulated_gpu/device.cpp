// CUDA's device in the host's memory, for a torch that was built without CUDA.
//
// A tensor of it says that it is on cuda:0, and lies in ordinary memory. An operator copies its tensors to the host's
// device and back (ATen's cpu_fallback), after a look at whether all of them were on this one. In a dry run, operators on
// large tensors only allocate what they return: shapes come from the meta device, and pages that nobody writes take no
// memory, so a model of any size fits. Large tensors are 0 then, and small ones that come from them (a sum, a norm) 1, of
// which a logarithm is finite. What tensors hold is counted, in blocks of 512 bytes as CUDA's allocator has them.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

const c10::Device DEVICE(c10::kCUDA, 0);
constexpr size_t LARGE = 1 << 20;  // bytes from which a tensor is not computed in a dry run
bool dry = false;

// Memory

std::atomic<size_t> held{0}, peak{0};

struct Block {
  void* data;
  size_t size;
};

void give_back(void* context) {
  auto* block = static_cast<Block*>(context);
  held -= block->size;
  std::free(block->data);
  delete block;
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, [](void*) {}, DEVICE};
    auto* block = new Block{nullptr, (size + 511) / 512 * 512};
    block->data = std::calloc(block->size, 1);
    held += block->size;
    for (size_t most = peak; held > most && !peak.compare_exchange_weak(most, held);) {
    }
    return {block->data, block, &give_back, DEVICE};
  }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
} memory;

const bool allocates = (c10::SetAllocator(c10::kCUDA, &memory), true);

// What torch asks a device: it has one stream, on which everything is done at once.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct CUDAHooks final : at::CUDAHooksInterface {  // torch looks for one of this name
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
};

// Operators that only look at tensors, or make empty ones

Tensor empty(SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

void set_size(const Tensor& self, at::IntArrayRef size) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);  // asks the storage's own allocator
}

const Tensor& resize_(const Tensor& self, SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  set_size(self, C10_AS_INTARRAYREF_SLOW(size));
  return self;
}

Tensor view(const Tensor& self, SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor as_strided(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride, std::optional<SymInt> offset) {
  const auto start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor reshape_alias(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_part(Tensor& self, at::Storage source, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::cpu::set_(self, source, offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
                       C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_whole(Tensor& self, at::Storage source) {
  const int64_t count = source.nbytes() / self.dtype().itemsize();
  return at::cpu::set_(self, source, 0, {count}, {1});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }

// Products in the real run; in a dry run in blocks, as CUDA's kernels have it.
int64_t attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>& mask, double, bool,
                  std::optional<double>, bool) {
  const int64_t by_products = 0, flash = 1, efficient = 2;  // at::SDPBackend
  return !dry ? by_products : mask ? efficient : flash;
}

// Copies

bool is_large(const Tensor& t) { return t.defined() && size_t(t.numel() * t.itemsize()) > LARGE; }

// The same memory as a tensor of the host.
Tensor seen_from_host(const Tensor& t) {
  if (!t.is_cuda()) return t;
  auto seen = at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(),
                            t.options().device(at::kCPU).requires_grad(false));
  seen._set_conj(t.is_conj());
  seen._set_neg(t.is_neg());
  return seen;
}

void transfer(const Tensor& from, const Tensor& to) {
  if (!dry || !is_large(to)) seen_from_host(to).copy_(seen_from_host(from));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  transfer(source, self);
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  transfer(self, to);
  return to;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  if (to.sizes() != self.sizes()) set_size(to, self.sizes());
  transfer(self, to);
  return to;
}

c10::Scalar local_scalar_dense(const Tensor& self) { return at::_local_scalar_dense(seen_from_host(self)); }

// All other operators

std::vector<Tensor> tensors_of(const c10::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  std::vector<Tensor> found;
  if (value.isOptionalTensorList())
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      if (t) found.push_back(*t);
  return found;
}

// Indices may be on the host, and numbers: CUDA takes both.
void refuse_other_devices(const c10::FunctionSchema& schema, const torch::jit::Stack& stack, size_t begin) {
  const bool indexes = schema.name().find("index") != std::string::npos;
  for (size_t i = 0; i < schema.arguments().size(); i++) {
    if (indexes && schema.arguments()[i].name() == "indices") continue;
    for (const Tensor& t : tensors_of(stack[begin + i]))
      TORCH_CHECK(!t.defined() || t.is_cuda() || t.dim() == 0,
                  "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ", t.device(),
                  " (", schema.name(), ", argument ", schema.arguments()[i].name(), ")");
  }
}

Tensor on(at::Device device, const Tensor& t) {
  if (!t.defined()) return t;
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(device).requires_grad(false));
}

c10::IValue on(at::Device device, const c10::IValue& value) {
  if (value.isTensor()) return on(device, value.toTensor());
  if (value.isDevice()) return device;
  if (!value.isTensorList()) return value;
  std::vector<Tensor> found;
  for (const Tensor& t : value.toTensorVector()) found.push_back(on(device, t));
  return found;
}

void be_one_if_small(const Tensor& t) {
  if (t.defined() && t.is_floating_point() && !is_large(t)) seen_from_host(t).fill_(1);
}

// Where masks are true is in their values, which shapes do not have.
c10::IValue shapes_of_indices(const c10::IValue& indices) {
  c10::List<std::optional<Tensor>> found;
  for (const std::optional<Tensor>& t : indices.toOptionalTensorVector()) {
    if (!t || !t->defined()) {
      found.push_back(std::nullopt);
    } else if (t->scalar_type() == at::kBool) {
      for (const Tensor& places : seen_from_host(*t).nonzero().unbind(1)) found.push_back(on(at::kMeta, places));
    } else {
      found.push_back(on(at::kMeta, *t));
    }
  }
  return found;
}

// Runs an operator on shapes, if it takes or makes a large tensor; else returns false.
bool runs_on_shapes(const c10::OperatorHandle& op, torch::jit::Stack* stack, size_t begin) {
  const auto& schema = op.schema();
  bool large = false;
  torch::jit::Stack shapes;
  for (size_t i = begin; i < stack->size(); i++) {
    const auto& value = (*stack)[i];
    for (const Tensor& t : tensors_of(value)) large = large || is_large(t);
    shapes.push_back(value.isOptionalTensorList() ? shapes_of_indices(value) : on(at::kMeta, value));
  }
  try {
    op.callBoxed(&shapes);
  } catch (const std::exception&) {  // an operator whose result is as large as values say
    if (large) throw;
    return false;
  }
  for (const auto& value : shapes)
    for (const Tensor& t : tensors_of(value)) large = large || is_large(t);
  if (!large) return false;
  torch::jit::Stack results;
  for (size_t i = 0; i < shapes.size(); i++) {
    const auto* written = schema.returns()[i].alias_info();
    if (!written || !written->isWrite()) {
      results.push_back(on(DEVICE, shapes[i]));
      for (const Tensor& made : tensors_of(results.back())) be_one_if_small(made);
      continue;
    }
    for (size_t j = 0; j < schema.arguments().size(); j++) {
      const auto* given = schema.arguments()[j].alias_info();
      if (!given || *given != *written) continue;
      const Tensor& own = (*stack)[begin + j].toTensor();
      if (own.sizes() != shapes[i].toTensor().sizes()) set_size(own, shapes[i].toTensor().sizes());
      be_one_if_small(own);
      results.push_back(own);
      break;
    }
  }
  stack->resize(begin);
  stack->insert(stack->end(), results.begin(), results.end());
  return true;
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t begin = stack->size() - op.schema().arguments().size();
  refuse_other_devices(op.schema(), *stack, begin);
  if (!dry || !runs_on_shapes(op, stack, begin)) at::native::cpu_fallback(op, stack);
}

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize_);
  m.impl("view", view);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("_fused_sdp_choice", attention);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

extern "C" {
size_t emulated_held() { return held; }
size_t emulated_peak() { return peak; }
void emulated_reset_peak() { peak = held.load(); }
void emulated_dry(bool on) { dry = on; }
}
