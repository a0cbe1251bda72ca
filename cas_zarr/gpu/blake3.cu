// BLAKE3 (default mode, 32 bytes) of many blobs at once; words.cuh stands in front of this.
//
// A blob is cut into leaves of 1 KiB ("chunks" in the paper), each leaf into blocks of 64 bytes. A
// thread compresses one leaf of all that the blobs have, and then, a launch a level, one pair of
// neighbours. Source: https://github.com/BLAKE3-team/BLAKE3-specs, sections 2.1 to 2.5.

enum : u32 { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

#define IV_LOW 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a
#define IV_HIGH 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19

__device__ __forceinline__ void mix(u32& a, u32& b, u32& c, u32& d, u32 x, u32 y) {
  a = a + b + x;
  d = __byte_perm(d ^ a, 0, 0x1032);  // by 16 bits
  c = c + d;
  b = rotated(b ^ c, 12);
  a = a + b + y;
  d = __byte_perm(d ^ a, 0, 0x0321);  // by 8 bits
  c = c + d;
  b = rotated(b ^ c, 7);
}

// One round; the message words come in the order of that round, so nothing is permuted at run time.
__device__ __forceinline__ void round_of(
    u32 (&v)[16], u32 m0, u32 m1, u32 m2, u32 m3, u32 m4, u32 m5, u32 m6, u32 m7, u32 m8, u32 m9,
    u32 m10, u32 m11, u32 m12, u32 m13, u32 m14, u32 m15) {
  mix(v[0], v[4], v[8], v[12], m0, m1);
  mix(v[1], v[5], v[9], v[13], m2, m3);
  mix(v[2], v[6], v[10], v[14], m4, m5);
  mix(v[3], v[7], v[11], v[15], m6, m7);
  mix(v[0], v[5], v[10], v[15], m8, m9);
  mix(v[1], v[6], v[11], v[12], m10, m11);
  mix(v[2], v[7], v[8], v[13], m12, m13);
  mix(v[3], v[4], v[9], v[14], m14, m15);
}

// Replace the chaining value `cv` by that behind a block of `count` bytes.
__device__ __forceinline__ void compress(
    u32 (&cv)[8], const u32 (&m)[16], u64 counter, u32 count, u32 flags) {
  u32 v[16] = {cv[0], cv[1], cv[2], cv[3], cv[4], cv[5], cv[6], cv[7],
               IV_LOW, (u32)counter, (u32)(counter >> 32), count, flags};
  round_of(v, m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7],
           m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15]);
  round_of(v, m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13],
           m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]);
  round_of(v, m[3], m[4], m[10], m[12], m[13], m[2], m[7], m[14],
           m[6], m[5], m[9], m[0], m[11], m[15], m[8], m[1]);
  round_of(v, m[10], m[7], m[12], m[9], m[14], m[3], m[13], m[15],
           m[4], m[0], m[11], m[2], m[5], m[8], m[1], m[6]);
  round_of(v, m[12], m[13], m[9], m[11], m[15], m[10], m[14], m[8],
           m[7], m[2], m[5], m[3], m[0], m[1], m[6], m[4]);
  round_of(v, m[9], m[14], m[11], m[5], m[8], m[12], m[15], m[1],
           m[13], m[3], m[0], m[10], m[2], m[6], m[4], m[7]);
  round_of(v, m[11], m[15], m[5], m[0], m[1], m[9], m[8], m[6],
           m[14], m[10], m[2], m[12], m[3], m[4], m[7], m[13]);
#pragma unroll
  for (int i = 0; i < 8; i++) cv[i] = v[i] ^ v[i + 8];
}

// Compress every leaf. Blob b has the leaves firsts[b] up to firsts[b + 1] of all; their chaining
// values go to the slots from slots[b] on. The only leaf of a blob is its root and goes to the digest.
extern "C" __global__ void __launch_bounds__(128) blake3_leaves(
    u64 leaves, u64 blobs, const u64* addresses, const u64* sizes, const u64* rows,
    const u64* firsts, const u64* slots, uint4* chaining, uint4* digests) {
  const u64 leaf = thread_index();
  if (leaf >= leaves) return;
  const u64 blob = span_of(firsts, blobs, leaf);
  const u64 counter = leaf - firsts[blob];
  const bool alone = firsts[blob + 1] - firsts[blob] == 1;
  const u64 left = sizes[blob] - 1024 * counter;
  u32 rest = left < 1024 ? (u32)left : 1024;
  u64 address = addresses[blob] + 1024 * counter;
  u32 cv[8] = {IV_LOW, IV_HIGH};
  u32 flags = CHUNK_START;
  while (true) {
    const bool last = rest <= 64;
    const u32 count = last ? rest : 64;
    if (last) flags |= alone ? CHUNK_END | ROOT : CHUNK_END;
    u32 m[16];
    load(m, address, count);
    compress(cv, m, counter, count, flags);
    if (last) break;
    flags = 0;
    rest -= 64;
    address += 64;
  }
  store(alone ? digests + 2 * rows[blob] : chaining + 2 * (slots[blob] + counter), cv);
}

// Compress every pair of neighbours of one level of the trees. A node lies in the slot of its first
// leaf, so one without a neighbour rises by staying where it is. A blob has as many slots as a full
// tree has leaves, and the larger ones come first: so a node's slot is a multiple of 2^level among
// those of all, and thread t looks at the nodes t << (level + 1) and 1 << level behind it.
extern "C" __global__ void __launch_bounds__(128) blake3_parents(
    u64 threads, u64 blobs, const u64* rows, const u64* firsts, const u64* slots, u64 level,
    uint4* chaining, uint4* digests) {
  const u64 thread = thread_index();
  if (thread >= threads) return;
  const u64 slot = thread << (level + 1);
  const u64 blob = span_of(slots, blobs, slot);
  const u64 last = firsts[blob + 1] - firsts[blob] - 1;
  if (slot - slots[blob] + (1ull << level) > last) return;  // no neighbour
  const bool root = last >> level == 1;
  uint4* left = chaining + 2 * slot;
  const uint4* right = left + (2ull << level);
  const uint4 a = left[0], b = left[1], c = right[0], d = right[1];
  const u32 m[16] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w,
                     c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
  u32 cv[8] = {IV_LOW, IV_HIGH};
  compress(cv, m, 0, 64, root ? PARENT | ROOT : PARENT);
  store(root ? digests + 2 * rows[blob] : left, cv);
}
