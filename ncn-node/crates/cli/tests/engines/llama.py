"""Serves a GGUF file with llama.cpp's server, as the model `smollm2`; prints the address and ends with its standard input."""

import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.model_alias = ["smollm2"]
parameters.n_ctx = 2048
parameters.n_parallel = 2
# One: two that wait for each other by spinning stand still on a machine that is busy.
parameters.cpuparams.n_threads = 1
parameters.embedding = True
parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
parameters.fit_params = False
parameters.warmup = False

server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
