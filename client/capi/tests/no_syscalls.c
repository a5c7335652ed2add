/* Publishes under a seccomp mode that kills the process at any system call but read, write and exit. */
#define _GNU_SOURCE
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lmcache_client.h"

int main(int argc, char **argv)
{
    lmcache_client *client;
    lmcache_registration registration = {
        .instance_id = 4712, .model_name = "seccomp", .world_size = 1, .block_size = 16,
        .num_layers = 2, .hidden_dim = 128, .dtype = "float16",
    };
    if (argc != 2 || lmcache_client_connect(argv[1], 5000, 30000, &client) != LMCACHE_STATUS_OK
        || lmcache_register(client, &registration) != LMCACHE_STATUS_OK) {
        fprintf(stderr, "%s\n", lmcache_last_error());
        return 1;
    }
    lmcache_record record = { .kind = LMCACHE_KIND_STORE_START, .transfer = 1, .nanos = lmcache_monotonic_ns() };
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        perror("seccomp");
        return 77;
    }
    /* More than fit, so that a full lane is among them. */
    int queued = 0, full = 0;
    for (int i = 0; i < 5000; i++) {
        switch (lmcache_publish(client, &record)) {
        case LMCACHE_PUBLICATION_QUEUED: queued++; break;
        case LMCACHE_PUBLICATION_FULL: full++; break;
        default: syscall(SYS_exit, 3);
        }
    }
    if (queued >= 1024 && full > 0)
        (void)!write(1, "published\n", 10);
    syscall(SYS_exit, 0);
}
