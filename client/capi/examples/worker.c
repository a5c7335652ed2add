/* A worker in C: stores a prompt's KV, finds it again, retrieves it, and checks every byte.
 *
 *   cc -I client/capi/include client/capi/examples/worker.c -L target/release -l lmcache_client_c -o worker
 *   LD_LIBRARY_PATH=target/release ./worker tcp://127.0.0.1:5555
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lmcache_client.h"

/* Ends the program with what the library says. */
static void check(lmcache_status status, const char *what)
{
    if (status != LMCACHE_STATUS_OK) {
        fprintf(stderr, "%s: %s (status %d)\n", what, lmcache_last_error(), (int)status);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s ENDPOINT\n", argv[0]);
        return 2;
    }
    lmcache_client *client;
    check(lmcache_client_connect(argv[1], 5000, 30000, &client), "connect");
    uint64_t chunk;
    check(lmcache_chunk_size(client, &chunk), "chunk size");

    /* Random in a real worker, and new at every start. */
    lmcache_registration registration = {
        .instance_id = 4711, .model_name = "c-example", .world_size = 1, .rank = 0, .block_size = 16,
        .num_layers = 2, .hidden_dim = 128, .dtype = "float16",
    };
    check(lmcache_register(client, &registration), "register");

    uint64_t count = 4 * chunk;
    uint32_t *tokens = malloc(count * sizeof *tokens);
    if (tokens == NULL)
        return 1;
    for (uint64_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(i * 7 % 50000);
    lmcache_prompt prompt = { .request_id = "c-store", .tokens = tokens, .token_count = count, .readers = 1 };

    /* Store: fill the slots of the pool, then commit. */
    lmcache_store *store;
    check(lmcache_prepare_store(client, &prompt, 0, count, &store), "prepare store");
    uint64_t stored = lmcache_store_slots(store);
    uint64_t began = lmcache_monotonic_ns();
    for (uint64_t slot = 0; slot < stored; slot++) {
        uint8_t *data;
        size_t length;
        uint64_t number;
        check(lmcache_store_slot(store, slot, &data, &length, &number), "slot");
        memset(data, (int)(number + 1), length);
    }
    check(lmcache_store_copied(store, began, lmcache_monotonic_ns()), "copied");
    check(lmcache_store_commit(store), "commit store");
    check(lmcache_end_session(client, "c-store"), "end session");

    /* Lookup, as another request with the same prompt. */
    prompt.request_id = "c-retrieve";
    check(lmcache_lookup_submit(client, &prompt), "lookup");
    uint64_t found;
    check(lmcache_lookup_wait(client, "c-retrieve", 10000, &found), "lookup result");

    /* Retrieve: read the slots, then commit. */
    lmcache_retrieve *retrieve;
    check(lmcache_prepare_retrieve(client, &prompt, 0, found * chunk, &retrieve), "prepare retrieve");
    uint64_t wrong = 0;
    for (uint64_t slot = 0; slot < lmcache_retrieve_slots(retrieve); slot++) {
        const uint8_t *data;
        size_t length;
        check(lmcache_retrieve_slot(retrieve, slot, &data, &length), "slot");
        for (size_t i = 0; i < length; i++)
            wrong += data[i] != slot + 1;
    }
    check(lmcache_retrieve_commit(retrieve), "commit retrieve");
    check(lmcache_end_session(client, "c-retrieve"), "end session");
    printf("stored %" PRIu64 ", found %" PRIu64 ", wrong bytes %" PRIu64 "\n", stored, found, wrong);

    /* Mistakes are answers, not crashes. */
    if (lmcache_prepare_retrieve(client, &prompt, 1, 2, &retrieve) != LMCACHE_STATUS_INVALID_ARGUMENT
        || strlen(lmcache_last_error()) == 0
        || lmcache_register(client, NULL) != LMCACHE_STATUS_INVALID_ARGUMENT
        || lmcache_client_connect("nonsense", 100, 100, &client) != LMCACHE_STATUS_INVALID_ARGUMENT
        || lmcache_publish(client, NULL) != LMCACHE_PUBLICATION_INVALID)
        return 1;

    check(lmcache_unregister(client), "unregister");
    lmcache_client_free(client);
    free(tokens);
    return wrong != 0;
}
