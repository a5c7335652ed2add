/* Connects without a token, with one that nobody has, and with a tenant's, and stores under the tenant's salt each time. */
#include <stdint.h>
#include <stdio.h>

#include "lmcache_client.h"

static lmcache_status store(lmcache_client *client, uint64_t instance)
{
    static uint32_t tokens[256];
    lmcache_registration registration = {
        .instance_id = instance, .model_name = "token", .world_size = 1, .block_size = 16,
        .num_layers = 2, .hidden_dim = 128, .dtype = "float16",
    };
    lmcache_prompt prompt = {
        .request_id = "r", .cache_salt = "one", .tokens = tokens, .token_count = 256,
    };
    lmcache_store *store;
    lmcache_status status = lmcache_register(client, &registration);
    if (status == LMCACHE_STATUS_OK)
        status = lmcache_prepare_store(client, &prompt, 0, 256, &store);
    return status == LMCACHE_STATUS_OK ? lmcache_store_commit(store) : status;
}

int main(int argc, char **argv)
{
    lmcache_client *client;
    if (argc != 3)
        return 2;
    if (lmcache_client_connect(argv[1], 5000, 30000, &client) != LMCACHE_STATUS_OK)
        return 1;
    printf("without %d\n", store(client, 1));
    lmcache_client_free(client);
    printf("unknown %d\n", lmcache_client_connect_with_token(argv[1], "0123456789abcdef-c", 5000, 30000, &client));
    if (lmcache_client_connect_with_token(argv[1], argv[2], 5000, 30000, &client) != LMCACHE_STATUS_OK)
        return 1;
    printf("tenant %d\n", store(client, 2));
    lmcache_client_free(client);
    return 0;
}
