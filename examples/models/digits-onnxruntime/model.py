"""Handwritten digits by ONNX Runtime, from Python."""

from pathlib import Path

import numpy as np
import onnxruntime


def load(model_dir):
    global session
    options = onnxruntime.SessionOptions()
    # A request runs in a fork, which has none of the threads that were started here.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        Path(model_dir) / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    # What a first run sets up is in every fork.
    infer({"image": np.zeros((1, 1, 8, 8), np.float32)})


def infer(inputs):
    (scores,) = session.run(["scores"], {"image": inputs["image"]})
    return {"scores": scores}
