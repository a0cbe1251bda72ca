// What CUDA C++ has beyond C++, as far as the kernels of cas_zarr use it, for a compiler of the host.
// Threads run one after the other: fit for kernels without barriers or shared memory.
#include <cstddef>
#include <utility>

#define __global__
#define __device__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct Index { unsigned int x; };
static thread_local Index blockIdx, blockDim, threadIdx;

struct alignas(16) uint4 { unsigned int x, y, z, w; };

static inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  return uint4{x, y, z, w};
}

template <class T>
static inline T __ldg(const T* from) { return *from; }

static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int bits) {
  return (unsigned int)(((unsigned long long)high << 32 | low) >> (bits & 31));
}

static inline unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int which) {
  const unsigned long long bytes = (unsigned long long)high << 32 | low;
  unsigned int out = 0;
  for (int i = 0; i < 4; i++)
    out |= (unsigned int)(bytes >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

// Run the threads `first` up to `first + count` of a kernel whose arguments all have 64 bits, from
// the last one on if `backwards`: what one launch does must not hang on the order of its threads.
template <class... T, std::size_t... I>
static void run(void (*kernel)(T...), unsigned int block, unsigned long long first,
                unsigned long long count, bool backwards, const unsigned long long* arguments,
                std::index_sequence<I...>) {
  blockDim.x = block;
  for (unsigned long long i = 0; i < count; i++) {
    const unsigned long long thread = first + (backwards ? count - 1 - i : i);
    blockIdx.x = (unsigned int)(thread / block);
    threadIdx.x = (unsigned int)(thread % block);
    kernel((T)arguments[I]...);
  }
}

template <class... T>
static void run(void (*kernel)(T...), unsigned int block, unsigned long long first,
                unsigned long long count, bool backwards, const unsigned long long* arguments) {
  run(kernel, block, first, count, backwards, arguments, std::index_sequence_for<T...>{});
}

#define LAUNCHER(kernel)                                                                          \
  extern "C" void launch_##kernel(unsigned int block, unsigned long long first,                   \
                                  unsigned long long count, int backwards,                        \
                                  const unsigned long long* arguments) {                          \
    run(kernel, block, first, count, backwards != 0, arguments);                                  \
  }
