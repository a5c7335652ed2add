/* The daemon's kernel, executed on the CPU one thread after the other. */
#include <stddef.h>

#define KERNEL static inline
#define PARAMETER const
struct place { unsigned x, y, z; };
typedef struct { unsigned x, y, z, w; } __attribute__((aligned(16))) uint4;
static _Thread_local struct place blockIdx, threadIdx, blockDim, gridDim;

#include "../../../daemon/src/device/cuda/kernel/move.cu"

/* Does the first `count` pieces, blocks from the last to the first: nobody may count on an order. */
void lmcached_move_on_cpu(const struct pieces *all, unsigned count, unsigned blocks, unsigned threads) {
  gridDim = (struct place){count, blocks, 1};
  blockDim = (struct place){threads, 1, 1};
  for (unsigned x = count; x-- > 0;)
    for (unsigned y = blocks; y-- > 0;)
      for (unsigned thread = 0; thread < threads; thread++) {
        blockIdx = (struct place){x, y, 0};
        threadIdx = (struct place){thread, 0, 0};
        lmcached_move(*all);
      }
}
