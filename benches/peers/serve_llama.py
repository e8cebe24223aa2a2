"""llama.cpp as a peer of the benchmark `peers`: serve_llama.py MODEL.gguf THREADS [--int8-cache]

Keeps the model loaded and answers each line of its input with a line of JSON. A request is

    {"prompts": [[1, 2, 3], [4, 5, 6]], "generate": 64}

and is answered with the seconds that the prompts took one after the other, and that as many tokens for each of them took
together afterwards. A single prompt that was the last one for its size is not computed again but cut back to its length, if
the request has "keep": true. The tokens that go in are the same in every run and none is sampled. `"resident"` asks for the
bytes of memory beyond those that the process had before it loaded the model."""

import json
import sys
import time

import llama_cpp as llama

CONTEXT_STEP = 256


def resident_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


class Peer:
    def __init__(self, path, threads, int8_cache):
        self.silence = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self.silence, None)
        llama.llama_backend_init()
        self.threads, self.int8_cache = threads, int8_cache
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise ValueError(f"{path} could not be loaded")
        self.contexts = {}
        self.kept = {}

    def context(self, sequences, tokens):
        """The context for that many sequences of that length; it stays for the next run."""
        tokens = -(-tokens // CONTEXT_STEP) * CONTEXT_STEP
        if (sequences, tokens) not in self.contexts:
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_seq_max = sequences * tokens, sequences
            params.n_batch, params.n_ubatch = 2048, 512
            params.n_threads = params.n_threads_batch = self.threads
            if self.int8_cache:
                params.type_k = params.type_v = llama.GGML_TYPE_Q8_0
                params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
            context = llama.llama_init_from_model(self.model, params)
            if not context:
                raise ValueError("there is no such context")
            self.contexts[sequences, tokens] = context
        return self.contexts[sequences, tokens]

    def run(self, prompts, generate, keep=False):
        context = self.context(len(prompts), max(map(len, prompts)) + generate)
        memory = llama.llama_get_memory(context)
        start = time.perf_counter()
        kept = keep and self.kept.get(context) == prompts
        if not kept or not llama.llama_memory_seq_rm(memory, 0, len(prompts[0]), -1):
            llama.llama_memory_clear(memory, True)
            for sequence, prompt in enumerate(prompts):
                self.prefill(context, sequence, prompt)
        self.kept[context] = prompts if keep else None
        prefilled = time.perf_counter()
        for step in range(generate):
            rows = [(prompt[step % len(prompt)], len(prompt) + step, i, True) for i, prompt in enumerate(prompts)]
            self.decode(context, rows)
        return {"prefill_seconds": prefilled - start, "decode_seconds": time.perf_counter() - prefilled}

    def prefill(self, context, sequence, prompt):
        rows = [(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)]
        for begin in range(0, len(rows), 2048):
            self.decode(context, rows[begin : begin + 2048])

    def decode(self, context, rows):
        batch = llama.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = llama.llama_decode(context, batch)
        llama.llama_batch_free(batch)
        if status != 0:
            raise ValueError(f"llama_decode gave {status}")


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    before = resident_bytes()
    peer = Peer(path, threads, "--int8-cache" in sys.argv[3:])
    print(json.dumps({"version": llama.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"bytes": resident_bytes() - before} if request == "resident" else peer.run(**request)
        print(json.dumps(answer), flush=True)


main()
