"""Serve a GGUF file with llama.cpp's own server, in a process of its own: python llama_server.py FILE NAME [exact]."""

import sys
import time

import xllamacpp


def main(path: str, name: str, exact: bool) -> None:
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.port = path, {name}, 0
    params.n_ctx, params.n_parallel = 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if exact:  # keys, values and attention in float32
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "exact" in sys.argv[3:])
