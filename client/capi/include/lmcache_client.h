/* C interface of the lmcached client. Made by cbindgen from client/capi/src; do not edit.
 *
 * Every function returns an lmcache_status, except those that cannot fail. After anything but LMCACHE_STATUS_OK,
 * lmcache_last_error() tells this thread what happened. Handles may be used from any thread; calls on one client take
 * turns. A handle is freed once, and not used after that. Blocking calls must not be made on a thread of an async runtime
 * of Rust's tokio.
 */

#ifndef LMCACHE_CLIENT_H
#define LMCACHE_CLIENT_H

#include <stddef.h>
#include <stdint.h>

// What came of a call.
typedef enum {
  // Done.
  LMCACHE_STATUS_OK = 0,
  // A null pointer, a text that is not UTF-8, a range that is not made of chunks: the call was not made.
  LMCACHE_STATUS_INVALID_ARGUMENT = 1,
  // The daemon cannot be reached. Try again later.
  LMCACHE_STATUS_UNREACHABLE = 2,
  // No answer in time. Try again later.
  LMCACHE_STATUS_DEADLINE = 3,
  // The daemon answered something that the protocol does not have, or slots that cannot be. Nothing was touched.
  LMCACHE_STATUS_PROTOCOL = 4,
  // The daemon said no: the pool is full, a chunk has gone, the time for a commit was over.
  LMCACHE_STATUS_REFUSED = 5,
  // `lmcache_register` comes first.
  LMCACHE_STATUS_NOT_REGISTERED = 6,
  // The pool cannot be mapped: the worker runs without cache.
  LMCACHE_STATUS_POOL = 7,
  // A lookup that still goes on.
  LMCACHE_STATUS_PENDING = 8,
  // A bug in this library.
  LMCACHE_STATUS_INTERNAL = 9,
} lmcache_status;

// What became of a record.
typedef enum {
  // It is in the lane.
  LMCACHE_PUBLICATION_QUEUED = 0,
  // The lane is full; the daemon counts it.
  LMCACHE_PUBLICATION_FULL = 1,
  // No lane: not registered, or the daemon offers none.
  LMCACHE_PUBLICATION_NO_LANE = 2,
  // The daemon has taken the lane away; the next call gets another.
  LMCACHE_PUBLICATION_STALE = 3,
  // Another thread was in the middle of a record.
  LMCACHE_PUBLICATION_BUSY = 4,
  // No record.
  LMCACHE_PUBLICATION_INVALID = 5,
} lmcache_publication;

// What a record says.
typedef enum {
  // The worker asked for a store.
  LMCACHE_KIND_STORE_SUBMITTED = 1,
  // It began to copy.
  LMCACHE_KIND_STORE_START = 2,
  // It has copied.
  LMCACHE_KIND_STORE_END = 3,
  // The worker asked for a retrieve.
  LMCACHE_KIND_RETRIEVE_SUBMITTED = 4,
  // It began to copy.
  LMCACHE_KIND_RETRIEVE_START = 5,
  // It has copied.
  LMCACHE_KIND_RETRIEVE_END = 6,
} lmcache_kind;

// Which way the bytes go.
typedef enum {
  // From the worker into the pool.
  LMCACHE_DIRECTION_STORE = 1,
  // From the pool into the worker.
  LMCACHE_DIRECTION_RETRIEVE = 2,
} lmcache_direction;

// A connection to the daemon, and the worker that is registered over it.
typedef struct lmcache_client lmcache_client;

// A retrieve under way.
typedef struct lmcache_retrieve lmcache_retrieve;

// A store under way.
typedef struct lmcache_store lmcache_store;

// A worker, and what its objects look like.
typedef struct {
  // Random, new at every start of the engine.
  uint64_t instance_id;
  // Model.
  const char *model_name;
  // Ranks that share the model's KV, 1 to 255.
  uint32_t world_size;
  // This worker's rank.
  uint32_t rank;
  // Tokens of an engine block.
  uint64_t block_size;
  // Layers of an object.
  uint64_t num_layers;
  // Elements per token, layer and plane.
  uint64_t hidden_dim;
  // torch's name of the element type, without "torch.".
  const char *dtype;
  // Not 0: K and V are one plane.
  uint8_t single_plane;
  // Slots of an object; 0: one per token of a chunk.
  uint64_t slots;
} lmcache_registration;

// A request's prompt.
typedef struct {
  // The engine's id of the request.
  const char *request_id;
  // All tokens.
  const uint32_t *tokens;
  // How many.
  size_t token_count;
  // Isolation domain; null or "" is the shared one.
  const char *cache_salt;
  // Workers that will retrieve each object that a lookup finds; 0 counts as 1.
  uint32_t readers;
} lmcache_prompt;

// A record of the worker's own.
typedef struct {
  // A lmcache_kind.
  uint32_t kind;
  // Not 0: all of it arrived. Of an end.
  uint8_t success;
  // Objects moved. Of an end.
  uint32_t count;
  // Of lmcache_transfer_id.
  uint64_t transfer;
  // Of lmcache_monotonic_ns.
  uint64_t nanos;
  // Bytes moved. Of an end.
  uint64_t bytes;
  // Tokens moved. Of an end.
  uint64_t tokens;
} lmcache_record;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in this thread's last call that did not return LMCACHE_STATUS_OK; "" if nothing did. Valid until this
// thread's next call.
const char *lmcache_last_error(void);

// Connects to "tcp://host:port" or "ipc:///path". The first number bounds each connect, the second each call.
//
// # Safety
// `endpoint` is a string; `out` is valid for a write.
lmcache_status lmcache_client_connect(const char *endpoint,
                                      uint64_t connect_timeout_ms,
                                      uint64_t call_timeout_ms,
                                      lmcache_client **out);

// The same with the token of a tenant, for a daemon with --tenant-tokens-file: every connection shows it first, and may use
// the cache salts that it opens. LMCACHE_STATUS_REFUSED: the daemon does not know the token.
//
// # Safety
// `endpoint` and `token` are strings; `out` is valid for a write.
lmcache_status lmcache_client_connect_with_token(const char *endpoint,
                                                 const char *token,
                                                 uint64_t connect_timeout_ms,
                                                 uint64_t call_timeout_ms,
                                                 lmcache_client **out);

// Frees a client. Stores and retrieves that are under way stay valid. Null is nothing.
//
// # Safety
// A client of `lmcache_client_connect` that was not freed, or null.
void lmcache_client_free(lmcache_client *client);

// Tokens of a chunk, as the daemon has it.
//
// # Safety
// `client` is a client; `out` is valid for a write.
lmcache_status lmcache_chunk_size(const lmcache_client *client, uint64_t *out);

// Registers the worker, maps the pool, and gets a lane of the shared ring if the daemon has one.
//
// # Safety
// `client` is a client; `registration` is a registration, its texts are strings.
lmcache_status lmcache_register(const lmcache_client *client,
                                const lmcache_registration *registration);

// Forgets the worker.
//
// # Safety
// `client` is a client.
lmcache_status lmcache_unregister(const lmcache_client *client);

// Asks whether the daemon is there, and registers the worker again if the daemon does not know it.
//
// # Safety
// `client` is a client.
lmcache_status lmcache_ping(const lmcache_client *client);

// Begins a lookup of the prompt's whole chunks.
//
// # Safety
// `client` is a client; `prompt` is a prompt with its strings and tokens.
lmcache_status lmcache_lookup_submit(const lmcache_client *client, const lmcache_prompt *prompt);

// Waits for a lookup's result: chunks found, from the prompt's beginning. LMCACHE_STATUS_PENDING if it takes longer.
//
// # Safety
// `client` is a client; `request_id` is a string; `out` is valid for a write.
lmcache_status lmcache_lookup_wait(const lmcache_client *client,
                                   const char *request_id,
                                   uint64_t timeout_ms,
                                   uint64_t *out);

// Ends a request.
//
// # Safety
// `client` is a client; `request_id` is a string.
lmcache_status lmcache_end_session(const lmcache_client *client, const char *request_id);

// Reserves slots for the chunks of tokens start to end that are not cached.
//
// # Safety
// `client` is a client; `prompt` is a prompt with its strings and tokens; `out` is valid for a write.
lmcache_status lmcache_prepare_store(const lmcache_client *client,
                                     const lmcache_prompt *prompt,
                                     uint64_t start,
                                     uint64_t end,
                                     lmcache_store **out);

// Slots to fill; 0 when everything is cached already, or for null.
//
// # Safety
// `store` is a store, or null.
size_t lmcache_store_slots(const lmcache_store *store);

// Slot `slot`: its bytes in the pool, to be written until the commit or the free, and which chunk of the range it is for.
//
// # Safety
// `store` is a store that no other thread uses now; the others are valid for a write.
lmcache_status lmcache_store_slot(lmcache_store *store,
                                  size_t slot,
                                  uint8_t **data,
                                  size_t *length,
                                  uint64_t *chunk);

// Says when the worker copied, by lmcache_monotonic_ns. Without it, the times of the prepare and of the commit stand.
//
// # Safety
// `store` is a store that no other thread uses now.
lmcache_status lmcache_store_copied(lmcache_store *store,
                                    uint64_t start_ns,
                                    uint64_t end_ns);

// Makes the chunks readable, and frees the store, whatever comes of it.
//
// # Safety
// `store` is a store that was not freed; its slots are not touched any more.
lmcache_status lmcache_store_commit(lmcache_store *store);

// Frees a store without a commit: nothing is stored. Null is nothing.
//
// # Safety
// A store that was not freed, or null.
void lmcache_store_free(lmcache_store *store);

// Pins the chunks of tokens start to end for reading. LMCACHE_STATUS_REFUSED if one is not there.
//
// # Safety
// `client` is a client; `prompt` is a prompt with its strings and tokens; `out` is valid for a write.
lmcache_status lmcache_prepare_retrieve(const lmcache_client *client,
                                        const lmcache_prompt *prompt,
                                        uint64_t start,
                                        uint64_t end,
                                        lmcache_retrieve **out);

// Slots to read, one for each chunk of the range; 0 for null.
//
// # Safety
// `retrieve` is a retrieve, or null.
size_t lmcache_retrieve_slots(const lmcache_retrieve *retrieve);

// Chunk `chunk` of the range: its bytes in the pool, to be read until the commit or the free.
//
// # Safety
// `retrieve` is a retrieve; the others are valid for a write.
lmcache_status lmcache_retrieve_slot(const lmcache_retrieve *retrieve,
                                     size_t chunk,
                                     const uint8_t **data,
                                     size_t *length);

// Says when the worker copied, by lmcache_monotonic_ns. Without it, the times of the prepare and of the commit stand.
//
// # Safety
// `retrieve` is a retrieve that no other thread uses now.
lmcache_status lmcache_retrieve_copied(lmcache_retrieve *retrieve,
                                       uint64_t start_ns,
                                       uint64_t end_ns);

// Gives the slots back, and frees the retrieve, whatever comes of it. LMCACHE_STATUS_REFUSED: the copy must not be used.
//
// # Safety
// `retrieve` is a retrieve that was not freed; its slots are not touched any more.
lmcache_status lmcache_retrieve_commit(lmcache_retrieve *retrieve);

// Frees a retrieve without a commit; its pins end with the client's next call. Null is nothing.
//
// # Safety
// A retrieve that was not freed, or null.
void lmcache_retrieve_free(lmcache_retrieve *retrieve);

// Writes a record of the worker's own into its lane of the shared ring. No system call, no waiting. What became of it, or
// LMCACHE_PUBLICATION_INVALID for null or a kind that does not exist.
//
// # Safety
// `client` is a client, `record` is a record; or null.
lmcache_publication lmcache_publish(const lmcache_client *client,
                                    const lmcache_record *record);

// The clock of records: CLOCK_MONOTONIC in nanoseconds.
uint64_t lmcache_monotonic_ns(void);

// The number that names a transfer in records.
//
// # Safety
// `request_id` is a string; `out` is valid for a write.
lmcache_status lmcache_transfer_id(const char *request_id,
                                   uint64_t start,
                                   uint64_t end,
                                   uint32_t direction,
                                   uint64_t *out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LMCACHE_CLIENT_H */
