// Adler-32 of many blobs at once: a thread a piece of 2048 bytes, then a thread a blob. words.cuh
// stands in front of this. Source: RFC 1950, section 8.2.
//
// Of a piece of n bytes d: its sum s, and its weighted sum w = n d[0] + (n - 1) d[1] + ... + d[n-1],
// which is at most 255 * 2048 * 2049 / 2 and so below 2^32. With r bytes of the blob behind a piece
// its part of the second sum of Adler-32 is w + r s; the first begins with 1, which adds the size.

enum : u32 { PIECE = 2048, MODULUS = 65521 };

extern "C" __global__ void __launch_bounds__(128) adler32_pieces(
    u64 pieces, u64 blobs, const u64* addresses, const u64* sizes, const u64* firsts, u32* sums) {
  const u64 piece = thread_index();
  if (piece >= pieces) return;
  const u64 blob = span_of(firsts, blobs, piece);
  const u64 start = PIECE * (piece - firsts[blob]), rest = sizes[blob] - start;
  const u64 address = addresses[blob] + start;
  const u32 size = rest < PIECE ? (u32)rest : (u32)PIECE;
  u32 sum = 0, weighted = 0;
  for (u32 at = 0; at < size; at += 64) {
    const u32 count = size - at < 64 ? size - at : 64;
    u32 words[16];
    load(words, address + at, count);
    weighted += 64 * sum;
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
      const u32 a = words[i] & 255, b = words[i] >> 8 & 255, c = words[i] >> 16 & 255;
      const u32 d = words[i] >> 24, four = a + b + c + d;
      sum += four;
      weighted += (64 - 4 * i) * four - (b + 2 * c + 3 * d);
    }
    weighted -= (64 - count) * sum;  // behind the last byte there are zeros that are none of it
  }
  sums[2 * piece] = sum;
  sums[2 * piece + 1] = weighted;
}

// Write the checksum of each blob, the high byte first, to any address.
extern "C" __global__ void __launch_bounds__(32) adler32_blobs(
    u64 blobs, const u64* sizes, const u64* firsts, const u32* sums, const u64* targets) {
  const u64 blob = thread_index();
  if (blob >= blobs) return;
  u64 rest = sizes[blob], first = 1, second = rest;
  for (u64 piece = firsts[blob]; piece < firsts[blob + 1]; piece++) {
    rest -= rest < PIECE ? rest : (u64)PIECE;
    first += sums[2 * piece];
    // A term is below 2^36: blobs of up to 2^38 bytes have too few of them to overflow.
    second += sums[2 * piece + 1] + sums[2 * piece] * (rest % MODULUS);
  }
  const u32 found = (u32)(second % MODULUS) << 16 | (u32)(first % MODULUS);
  unsigned char* to = (unsigned char*)targets[blob];
  for (u32 i = 0; i < 4; i++) to[i] = (unsigned char)(found >> (24 - 8 * i));
}
