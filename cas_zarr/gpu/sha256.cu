// SHA-256 of many blobs at once, a thread a blob: its blocks hang on each other, so a blob has no
// other parallelism. words.cuh stands in front of this. Source: FIPS 180-4, sections 5.1.1 and 6.2.

__constant__ u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

__device__ __forceinline__ u32 swapped(u32 word) { return __byte_perm(word, 0, 0x0123); }

// Replace the state `h` by that behind a block; `w` ends as the last 16 words of its schedule.
__device__ __forceinline__ void compress(u32 (&h)[8], u32 (&w)[16]) {
  u32 v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = h[i];
#pragma unroll
  for (int t = 0; t < 64; t++) {
    if (t >= 16) {
      const u32 near = w[(t + 14) & 15], far = w[(t + 1) & 15];
      w[t & 15] += w[(t + 9) & 15] + (rotated(near, 17) ^ rotated(near, 19) ^ near >> 10) +
                   (rotated(far, 7) ^ rotated(far, 18) ^ far >> 3);
    }
    // The names of the standard stand still here, and the eight words move under them.
    u32 &a = v[(64 - t) & 7], &b = v[(65 - t) & 7], &c = v[(66 - t) & 7], &d = v[(67 - t) & 7];
    u32 &e = v[(68 - t) & 7], &f = v[(69 - t) & 7], &g = v[(70 - t) & 7], &last = v[(71 - t) & 7];
    const u32 one = last + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) +
                    ((e & f) ^ (~e & g)) + K[t] + w[t & 15];
    const u32 two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) +
                    ((a & b) ^ (a & c) ^ (b & c));
    d += one;
    last = one + two;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) h[i] += v[i];
}

// Hash every blob. They come in the order of their sizes, so a warp's are about equally long.
extern "C" __global__ void __launch_bounds__(32) sha256_blobs(
    u64 blobs, const u64* addresses, const u64* sizes, const u64* rows, uint4* digests) {
  const u64 blob = thread_index();
  if (blob >= blobs) return;
  const u64 size = sizes[blob];
  const u64 blocks = (size + 72) / 64;  // with a byte of padding and eight of length behind the blob
  u64 address = addresses[blob];
  u64 left = size;
  bool open = true;  // the one bit behind the blob is still to come
  u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
              0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (u64 block = 1; block <= blocks; block++) {
    const u32 count = left < 64 ? (u32)left : 64;
    u32 w[16];
    load(w, address, count);
    if (count < 64 && open) {
#pragma unroll
      for (u32 i = 0; i < 16; i++)
        if (i == count / 4) w[i] |= 0x80u << 8 * (count & 3);
      open = false;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) w[i] = swapped(w[i]);
    if (block == blocks) {
      w[14] = (u32)(size >> 29);
      w[15] = (u32)(size << 3);
    }
    compress(h, w);
    left -= count;
    address += count;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) h[i] = swapped(h[i]);
  store(digests + 2 * rows[blob], h);
}
