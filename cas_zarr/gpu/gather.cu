// Copy many blobs of a device to one slab. words.cuh stands in front of this.
//
// A blob's place in the slab has its address modulo 16, so whole words of 16 bytes are copied
// whatever the alignment, and only the first and the last of a blob go byte by byte. A block copies
// a tile of 512 words, so it looks for its blob once.

// Copy tile t, of blob b from firsts[b] on. Blob b goes to where `targets[b]` says, a multiple of
// 16 before its first byte: as far before it as its address is behind such a multiple.
extern "C" __global__ void __launch_bounds__(128) gather(
    u64 tiles, u64 blobs, const u64* addresses, const u64* sizes, const u64* targets,
    const u64* firsts, u64 slab) {
  const u64 tile = blockIdx.x;
  if (tile >= tiles) return;
  const u64 blob = span_of(firsts, blobs, tile);
  const u64 skip = addresses[blob] & 15, end = skip + sizes[blob];
  const u64 from = addresses[blob] - skip, to = slab + targets[blob];
  u64 at = 16 * (512 * (tile - firsts[blob]) + threadIdx.x);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (at >= skip && at + 16 <= end) {
      *(uint4*)(to + at) = __ldg((const uint4*)(from + at));
    } else {
      const u64 stop = at + 16 < end ? at + 16 : end;
      for (u64 byte = at < skip ? skip : at; byte < stop; byte++)
        *(unsigned char*)(to + byte) = *(const unsigned char*)(from + byte);
    }
    at += 16 * 128;
  }
}
