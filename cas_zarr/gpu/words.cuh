// What the kernels need: which blob a thread works on, and the bytes of a blob as words.
//
// NVRTC compiles this in front of blake3.cu, sha256.cu and the others, so there are no headers and nothing of a
// standard library. Addresses are 64-bit integers: blobs may lie in many slabs, at any alignment.
// Devices and their hosts are little-endian.

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ u64 thread_index() {
  return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ u32 rotated(u32 word, u32 bits) {  // to the right
  return __funnelshift_r(word, word, bits);
}

// Which of `count` spans holds `position`. Span s goes from firsts[s] up to firsts[s + 1]; none is
// empty.
__device__ __forceinline__ u64 span_of(const u64* firsts, u64 count, u64 position) {
  u64 low = 0;
  while (count > 1) {
    const u64 half = count / 2;
    if (firsts[low + half] <= position) low += half;
    count -= half;
  }
  return low;
}

// The 64 bytes at an address that is a multiple of 16.
__device__ __forceinline__ void load_aligned(u32 (&words)[16], u64 address) {
  const uint4* from = (const uint4*)address;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint4 four = __ldg(from + i);
    words[4 * i] = four.x;
    words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z;
    words[4 * i + 3] = four.w;
  }
}

// The `count` bytes, at most 64, at any address, and zeros behind them. Memory is read in the
// aligned words of four bytes that hold those bytes, and no others.
__device__ __forceinline__ void load_ragged(u32 (&words)[16], u64 address, u32 count) {
  const u32 skip = (u32)address & 3;
  const u32* from = (const u32*)(address - skip);
  const u32 held = count ? (skip + count + 3) / 4 : 0;
  u32 low = held ? __ldg(from) : 0;
#pragma unroll
  for (u32 i = 0; i < 16; i++) {
    const u32 high = i + 1 < held ? __ldg(from + i + 1) : 0;
    const u32 word = __funnelshift_r(low, high, 8 * skip);
    const u32 rest = count > 4 * i ? count - 4 * i : 0;
    words[i] = rest < 4 ? word & ((1u << 8 * rest) - 1) : word;
    low = high;
  }
}

__device__ __forceinline__ void load(u32 (&words)[16], u64 address, u32 count) {
  if (count == 64 && (address & 15) == 0)
    load_aligned(words, address);
  else
    load_ragged(words, address, count);
}

// Eight words to a place that is a multiple of 16.
__device__ __forceinline__ void store(uint4* to, const u32 (&words)[8]) {
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}
