"""Generates with llama.cpp, greedily: FILE THREADS TOKENS PROMPT. For each line of input, prints the tokens per second after the first."""

import json
import sys

import xllamacpp

file, threads, tokens, prompt = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = file
parameters.n_ctx = 1024
parameters.n_parallel = 1
parameters.cpuparams.n_threads = int(threads)
parameters.cpuparams_batch.n_threads = int(threads)
parameters.fit_params = False

server = xllamacpp.Server(parameters)
request = {"prompt": prompt, "n_predict": int(tokens), "temperature": 0, "cache_prompt": False, "ignore_eos": True}
for _ in sys.stdin:
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    print(answer["timings"]["predicted_per_second"], flush=True)
