/* Moves a list of pieces by the GPU's threads: a worker's blocks into a staging buffer, or out of it.
 *
 * One block of threads in x for each piece; blocks in y share its bytes. A piece is `rows` times `bytes`, at regular steps on
 * both sides. The widest access that everything is aligned to is used, 16 bytes at most. No two pieces write the same byte, so
 * nothing here is ordered.
 *
 * This is also C: the tests' own driver executes it on the CPU. Rebuild move.ptx with build.py after a change.
 */
#ifdef __CUDACC__
#define KERNEL extern "C" __global__
#define PARAMETER const __grid_constant__
#endif

/* `Move` and `PIECES` in staging.rs are the same for Rust. */
#define PIECES 127

typedef unsigned int word;
typedef unsigned long long address;

struct piece {
  address to, from;
  word bytes, rows;
  word to_step, from_step;
};

/* By value: a kernel's parameters may have 4096 bytes, and nothing must be kept until it has run. */
struct pieces {
  struct piece list[PIECES];
};

#define MOVE(type)                                                                \
  for (word at = first; at < units; at += step) {                                 \
    const address row = at / in_row, column = at % in_row;                        \
    const address to = piece->to + row * piece->to_step + column * sizeof(type);  \
    const address from = piece->from + row * piece->from_step + column * sizeof(type); \
    *(type *)to = *(const type *)from;                                            \
  }

KERNEL void lmcached_move(PARAMETER struct pieces all) {
  const struct piece *piece = &all.list[blockIdx.x];
  const word first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
  address aligned = piece->to | piece->from | piece->bytes;
  if (piece->rows > 1) aligned |= piece->to_step | piece->from_step;
  const word unit = aligned % 16 == 0 ? 16 : aligned % 8 == 0 ? 8 : aligned % 4 == 0 ? 4 : aligned % 2 == 0 ? 2 : 1;
  const word in_row = piece->bytes / unit, units = in_row * piece->rows;
  switch (unit) {
    case 16: MOVE(uint4) break;
    case 8: MOVE(address) break;
    case 4: MOVE(word) break;
    case 2: MOVE(unsigned short) break;
    default: MOVE(unsigned char) break;
  }
}
