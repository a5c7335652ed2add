/* Moves a list of pieces by the GPU's threads: a worker's blocks into a staging buffer, or out of it.
 *
 * One block of threads in x for each piece; blocks in y share its bytes. A piece is `tiles` times `rows` times `bytes`, each at
 * regular steps on both sides. The widest access that everything is aligned to is used, 16 bytes at most. No two pieces write the
 * same byte, so nothing here is ordered.
 *
 * This is also C: the tests' own driver does on the CPU what each thread does. Rebuild move.ptx with build.py after a change.
 */
#ifdef __CUDACC__
#define THREAD static __device__ __forceinline__
#endif

/* `Move` and `PIECES` in staging.rs are the same for Rust. */
#define PIECES 85

typedef unsigned int word;
typedef unsigned long long address;

struct piece {
  address to, from;
  word bytes, rows, tiles;
  word to_row, from_row;
  word to_tile, from_tile;
  word unused;
};

/* By value: a kernel's parameters may have 4096 bytes, and nothing must be kept until it has run. */
struct pieces {
  struct piece list[PIECES];
};

#define MOVE(type)                                                                                   \
  for (word at = first; at < units; at += step) {                                                    \
    const address tile = at / in_tile, row = at % in_tile / in_row;                                  \
    const address column = at % in_row * sizeof(type);                                               \
    const address to = piece->to + tile * piece->to_tile + row * piece->to_row + column;             \
    const address from = piece->from + tile * piece->from_tile + row * piece->from_row + column;     \
    *(type *)to = *(const type *)from;                                                               \
  }

/* What thread number `first` of `step` does. */
THREAD void move_part(const struct piece *piece, const word first, const word step) {
  address aligned = piece->to | piece->from | piece->bytes;
  if (piece->rows > 1) aligned |= piece->to_row | piece->from_row;
  if (piece->tiles > 1) aligned |= piece->to_tile | piece->from_tile;
  const word unit = aligned % 16 == 0 ? 16 : aligned % 8 == 0 ? 8 : aligned % 4 == 0 ? 4 : aligned % 2 == 0 ? 2 : 1;
  const word in_row = piece->bytes / unit, in_tile = in_row * piece->rows, units = in_tile * piece->tiles;
  switch (unit) {
    case 16: MOVE(uint4) break;
    case 8: MOVE(address) break;
    case 4: MOVE(word) break;
    case 2: MOVE(unsigned short) break;
    default: MOVE(unsigned char) break;
  }
}

#ifdef __CUDACC__
extern "C" __global__ void lmcached_move(const __grid_constant__ struct pieces all) {
  move_part(&all.list[blockIdx.x], blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x);
}
#endif
