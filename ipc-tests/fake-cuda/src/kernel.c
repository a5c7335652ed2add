/* The daemon's kernel, executed on the CPU one thread after the other. */
#define THREAD static inline
typedef struct { unsigned x, y, z, w; } __attribute__((aligned(16))) uint4;

#include "../../../daemon/src/device/cuda/kernel/move.cu"

/* Does the first `count` pieces, threads from the last to the first: nobody may count on an order. */
void lmcached_move_on_cpu(const struct pieces *all, unsigned count, unsigned blocks, unsigned threads) {
  const unsigned step = blocks * threads;
  for (unsigned piece = count; piece-- > 0;)
    for (unsigned first = step; first-- > 0;) move_part(&all->list[piece], first, step);
}
