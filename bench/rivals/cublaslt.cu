// cuBLASLt as a rival of bench: reads one request a line on stdin, answers one JSON line each. The library is opened at run time (the one
// TRAIN_CORE_CUBLASLT names, or the system's), so this needs neither its headers nor the library to be built.
//
//   prepare M N K trans_a trans_b kind sets   kind: plain, bias, residual, gelu, dgelu (bf16), add (f32, out +=)   -> {"mode": algorithm}
//   run count                                                                      -> {"ms": of all of them, "cpu_ms": 0}
// Of the algorithms that its heuristic names the fastest is taken. Not run on a GPU yet.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

// ---- as much of cublasLt.h as is used (cuBLAS 12 and 13)

using Handle = void*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
enum { kR32F = 0, kR16BF = 14, kCompute32F = 68 };
enum Attribute { kTransA = 3, kTransB = 4, kEpilogue = 7, kBias = 8, kAux = 11, kAuxLd = 12 };
enum Epilogue { kNone = 1, kAddBias = 4, kGeluAuxBias = 164, kDGelu = 192 };
constexpr int kMaxWorkspace = 1;  // of a preference

struct Library {
  size_t (*version)();
  int (*create)(Handle*);
  int (*desc_create)(void**, int compute, int scale);
  int (*desc_set)(void*, int attribute, const void*, size_t);
  int (*layout_create)(void**, int type, uint64_t rows, uint64_t columns, int64_t ld);
  int (*preference_create)(void**);
  int (*preference_set)(void*, int attribute, const void*, size_t);
  int (*heuristic)(Handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted, Heuristic*,
                   int* got);
  int (*matmul)(Handle, void* desc, const void* alpha, const void* a, void* of_a, const void* b, void* of_b,
                const void* beta, const void* c, void* of_c, void* d, void* of_d, const Algorithm*, void* workspace,
                size_t, cudaStream_t);
};

[[noreturn]] void stop(const std::string& why) {
  std::fprintf(stderr, "cublasLt: %s\n", why.c_str());
  std::exit(1);
}
void check(cudaError_t error) {
  if (error != cudaSuccess) stop(cudaGetErrorString(error));
}
void check(int status, const char* what) {
  if (status != 0) stop(std::string(what) + " failed with " + std::to_string(status));
}

Library open_library() {
  const char* named = std::getenv("TRAIN_CORE_CUBLASLT");
  void* handle = nullptr;
  for (const char* name : {named, "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
    if (!handle && name && *name) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!handle) stop(std::string("it could not be opened: ") + dlerror());
  Library lt;
  const auto find = [&](auto& function, const char* name) {
    void* at = dlsym(handle, name);
    if (!at) stop(std::string("it has no ") + name);
    std::memcpy(&function, &at, sizeof at);
  };
  find(lt.version, "cublasLtGetVersion");
  find(lt.create, "cublasLtCreate");
  find(lt.desc_create, "cublasLtMatmulDescCreate");
  find(lt.desc_set, "cublasLtMatmulDescSetAttribute");
  find(lt.layout_create, "cublasLtMatrixLayoutCreate");
  find(lt.preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(lt.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.matmul, "cublasLtMatmul");
  return lt;
}

// ---- one product, several sets of operands in turn

// Uniform in [-1, 1): zeros would run faster than data.
__global__ void fill(void* out, size_t count, bool is_bf16, uint32_t seed) {
  for (size_t k = blockIdx.x * size_t(blockDim.x) + threadIdx.x; k < count; k += size_t(gridDim.x) * blockDim.x) {
    uint32_t x = uint32_t(k) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    const float value = float(x >> 8) * (1.0f / (1 << 23)) - 1;
    if (is_bf16)
      static_cast<uint16_t*>(out)[k] = uint16_t(__float_as_uint(value) >> 16);
    else
      static_cast<float*>(out)[k] = value;
  }
}
void* filled(size_t count, bool is_bf16) {
  static uint32_t seed = 1;
  void* data;
  check(cudaMalloc(&data, count * (is_bf16 ? 2 : 4)));
  fill<<<1024, 256>>>(data, count, is_bf16, seed++);
  return data;
}

struct Set {
  void *a, *b, *bias, *extra, *out;
  void* desc;
};

class Product {
 public:
  Product(const Library& lt, Handle handle, int64_t M, int64_t N, int64_t K, bool trans_a, bool trans_b,
          const std::string& kind, int sets)
      : lt_(lt), handle_(handle), residual_(kind == "residual"), adds_(residual_ || kind == "add") {
    // Row-major out = op(a)·op(b) is column-major outᵀ = op(b)ᵀ·op(a)ᵀ: the operands change places.
    const bool f32 = kind == "add";
    layout(&of_b_, kR16BF, trans_b ? K : N, trans_b ? N : K);
    layout(&of_a_, kR16BF, trans_a ? M : K, trans_a ? K : M);
    layout(&of_out_, f32 ? kR32F : kR16BF, N, M);
    for (int k = 0; k < sets; k++) {
      Set s{filled(M * K, true), filled(K * N, true), filled(N, true),
            filled(M * N, !f32), filled(M * N, !f32), nullptr};
      s.desc = describe(s, trans_a, trans_b, kind, N);
      sets_.push_back(s);
    }
    check(cudaMalloc(&workspace_, kWorkspace));
    pick();
  }

  int algorithm() const { return best_; }
  float run(int count) {  // ms
    check(cudaEventRecord(begin_));
    for (int k = 0; k < count; k++) launch(found_[best_], sets_[next_++ % sets_.size()]);
    check(cudaEventRecord(end_));
    check(cudaEventSynchronize(end_));
    float ms;
    check(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  static constexpr size_t kWorkspace = size_t(64) << 20;

  void layout(void** to, int type, int64_t rows, int64_t columns) {
    check(lt_.layout_create(to, type, uint64_t(rows), uint64_t(columns), rows), "a layout");
  }
  void* describe(const Set& s, bool trans_a, bool trans_b, const std::string& kind, int64_t N) {
    void* desc;
    check(lt_.desc_create(&desc, kCompute32F, kR32F), "a description");
    const auto set = [&](int attribute, auto value) {
      check(lt_.desc_set(desc, attribute, &value, sizeof value), "an attribute");
    };
    set(kTransA, int32_t(trans_b));
    set(kTransB, int32_t(trans_a));
    const bool biased = kind == "bias" || kind == "residual" || kind == "gelu";
    set(kEpilogue, int32_t(kind == "gelu" ? kGeluAuxBias : kind == "dgelu" ? kDGelu : biased ? kAddBias : kNone));
    if (biased) set(kBias, s.bias);
    if (kind == "gelu" || kind == "dgelu") {
      set(kAux, s.extra);
      set(kAuxLd, N);
    }
    return desc;
  }
  int try_launch(const Heuristic& h, const Set& s) {
    const float one = 1, beta = adds_ ? 1 : 0;
    const void* c = residual_ ? s.extra : s.out;  // f32 sums are added in place
    return lt_.matmul(handle_, s.desc, &one, s.b, of_b_, s.a, of_a_, &beta, c, of_out_, s.out, of_out_, &h.algorithm,
                      workspace_, kWorkspace, nullptr);
  }
  void launch(const Heuristic& h, const Set& s) { check(try_launch(h, s), "a product"); }

  // The fastest of what the heuristic names.
  void pick() {
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
    void* preference;
    check(lt_.preference_create(&preference), "a preference");
    check(lt_.preference_set(preference, kMaxWorkspace, &kWorkspace, sizeof kWorkspace), "a preference");
    found_.resize(8);
    int got = 0;
    check(lt_.heuristic(handle_, sets_[0].desc, of_b_, of_a_, of_out_, of_out_, preference, int(found_.size()),
                        found_.data(), &got),
          "the heuristic");
    float fastest = 1e30f;
    for (int k = 0; k < got; k++) {
      if (found_[k].state != 0 || try_launch(found_[k], sets_[0]) != 0) continue;
      best_ = k;
      const float ms = std::min({run(5), run(5), run(5)});
      if (ms < fastest) fastest = ms, winner_ = k;
    }
    if (winner_ < 0) stop("no algorithm runs this product");
    best_ = winner_;
  }

  const Library& lt_;
  const Handle handle_;
  const bool residual_, adds_;
  void *of_a_, *of_b_, *of_out_, *workspace_;
  std::vector<Set> sets_;
  std::vector<Heuristic> found_;
  int best_ = 0, winner_ = -1;
  size_t next_ = 0;
  cudaEvent_t begin_, end_;
};

}  // namespace

int main() {
  const Library lt = open_library();
  int count = 0;
  check(cudaGetDeviceCount(&count));
  Handle handle;
  check(lt.create(&handle), "the library");
  std::printf("{\"version\": \"%zu\"}\n", lt.version());
  std::fflush(stdout);
  Product* product = nullptr;
  char line[256];
  while (std::fgets(line, sizeof line, stdin)) {
    long long M, N, K;
    int trans_a, trans_b, sets, runs;
    char kind[16];
    if (std::sscanf(line, "prepare %lld %lld %lld %d %d %15s %d", &M, &N, &K, &trans_a, &trans_b, kind, &sets) == 7) {
      delete product;  // its memory goes with the process: bench makes one product in each
      product = new Product(lt, handle, M, N, K, trans_a != 0, trans_b != 0, kind, sets);
      std::printf("{\"mode\": \"algorithm %d\"}\n", product->algorithm());
    } else if (product && std::sscanf(line, "run %d", &runs) == 1) {
      std::printf("{\"ms\": %g, \"cpu_ms\": 0}\n", double(product->run(runs)));
    } else {
      stop(std::string("what is asked? ") + line);
    }
    std::fflush(stdout);
  }
}
