"""One vLLM engine that does what it is told, one JSON line in and one JSON line out.

    engine_worker.py SETTINGS    (SETTINGS: JSON with "model" and "connector", the latter null for no cache at all)

Commands on stdin, each answered by one line on the original stdout:
    {"do": "generate", "prompts": [[token, ...], ...]}   all prompts in one batch; answers one entry per prompt
    {"do": "drain"}                                      waits until no store is under way
    {"do": "reset"}                                      forgets the engine's and the connector's cache
    {"do": "exit"}
"""

import json
import os
import sys
import time

# Everything that libraries print goes to stderr (the log); the real stdout carries answers only.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

OUTPUT_TOKENS = 16
BLOCK_SIZE = 32
# 256 blocks of 32 tokens: enough for every prompt at once, and small enough to live in a modest /dev/shm.
BLOCKS = 256
DRAIN_DEADLINE = 60.0


def stores_under_way(_worker) -> int:
    """Runs inside the vLLM worker: how many stores the server has not answered yet.

    generate() returns when the last token is there, which can be before the last store is. What the next lookup finds
    would then depend on timing, so callers that expect exact counts wait for this to become 0.
    """
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    futures = get_kv_transfer_group().worker_adapter.store_futures
    return sum(not future.query() for future in futures.values())


def start(settings: dict):
    from vllm import LLM, SamplingParams

    options = {"kv_transfer_config": settings["connector"]} if settings["connector"] else {}
    llm = LLM(
        model=settings["model"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        enable_prefix_caching=False,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=BLOCKS,
        max_num_seqs=8,
        disable_log_stats=False,
        **options,
    )
    sampling = SamplingParams(
        temperature=0,
        max_tokens=OUTPUT_TOKENS,
        detokenize=False,
        ignore_eos=True,
        extra_args={"kv_transfer_params": {"cached_token_stats": True}} if options else None,
    )
    return llm, sampling


def generate(llm, sampling, prompts: list[list[int]]) -> list[dict]:
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "cached": output.num_cached_tokens,
            "reason": output.outputs[0].finish_reason,
            "stats": (output.kv_transfer_params or {}).get("cached_token_stats"),
        }
        for output in outputs
    ]


def drain(llm) -> int:
    deadline = time.monotonic() + DRAIN_DEADLINE
    while (left := sum(llm.collective_rpc(stores_under_way))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def main() -> None:
    settings = json.loads(sys.argv[1])
    llm, sampling = start(settings)
    print(json.dumps({"ready": True}), file=ANSWERS)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "exit":
            break
        try:
            if command["do"] == "generate":
                answer = {"results": generate(llm, sampling, command["prompts"])}
            elif command["do"] == "drain":
                answer = {"under_way": drain(llm)}
            elif command["do"] == "reset":
                answer = {"reset": bool(llm.reset_prefix_cache(reset_connector=True))}
            else:
                raise ValueError(f"unknown command {command['do']!r}")
        except Exception as error:  # the runner reports it as a failed check; the traceback is in the log
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=ANSWERS)
    # An orderly end, so that unregistering is exercised too.
    llm.llm_engine.engine_core.shutdown()


# vLLM may start its engine process by importing this file again: nothing must run then.
if __name__ == "__main__":
    main()
