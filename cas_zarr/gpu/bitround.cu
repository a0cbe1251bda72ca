// Round the mantissas of floating-point numbers to fewer bits, half to even, as integers of their
// size: 2, 4 or 8 bytes. words.cuh stands in front of this. Source: numcodecs, bitround.py, and
// Klöwer et al. 2021, https://doi.org/10.1038/s43588-021-00156-2.

template <class Word>
__device__ __forceinline__ void round_bits(u64 count, u64 from, u64 to, u64 dropped) {
  const u64 row = thread_index();
  if (row >= count) return;
  const Word word = ((const Word*)from)[row], one = 1;
  const Word half = (Word)((one << (dropped - 1)) - 1), odd = word >> dropped & 1;
  ((Word*)to)[row] = (Word)(word + odd + half) >> dropped << dropped;
}

// `dropped` is at least 1 and less than the bits of a number.
extern "C" __global__ void __launch_bounds__(256) bitround_2(
    u64 count, u64 from, u64 to, u64 dropped) {
  round_bits<unsigned short>(count, from, to, dropped);
}

extern "C" __global__ void __launch_bounds__(256) bitround_4(
    u64 count, u64 from, u64 to, u64 dropped) {
  round_bits<u32>(count, from, to, dropped);
}

extern "C" __global__ void __launch_bounds__(256) bitround_8(
    u64 count, u64 from, u64 to, u64 dropped) {
  round_bits<u64>(count, from, to, dropped);
}
