#!/usr/bin/env python3
"""Train the `digits` model package, or check the committed one.

    python train.py           train; write model.onnx, manifest.json and the sample PNGs
    python train.py --check   write nothing; re-evaluate what is committed
"""

import os

# One BLAS thread: sums are then always taken in the same order, so that a
# second run on the same machine writes the same bytes. Must precede numpy.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import hashlib
import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model.onnx"
MANIFEST = HERE / "manifest.json"
SAMPLES = HERE.parents[2] / "examples" / "data"

SEED = 0
LABELS = [str(digit) for digit in range(10)]
MIN_ACCURACY = 0.97
MIN_SAMPLE_SCORE = 0.9

# The manifest's `from.image` rule: tensor = pixel * SCALE + OFFSET, pixel in 0..=255.
SCALE = 1 / 255
OFFSET = 0


def load():
    """The data set as 8-bit pixels, split into (train, held-out)."""
    digits = load_digits()
    # Values 0..16 become the 8-bit pixels that a PNG holds. The model is
    # trained on these, so it sees exactly what a client's PNG decodes to.
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    train_x, held_x, train_y, held_y = train_test_split(
        pixels, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target
    )
    return (train_x, train_y), (held_x, held_y)


def to_tensor(pixels):
    """uint8 [n,8,8] -> float32 [n,1,8,8], in f32 arithmetic as the runtime does it."""
    return (pixels.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET))[:, None]


def augment(images, labels, copies=30):
    """Add randomly shifted and slightly bent copies of each image.

    Shifts stay within half a pixel: the digits fill the 8x8 frame, and moving
    one by a whole pixel would cut off ink.
    """
    rng = np.random.default_rng(SEED)
    centre = np.array([3.5, 3.5])
    out = [images]
    for _ in range(copies):
        bent = np.empty_like(images)
        for i, image in enumerate(images):
            matrix = np.eye(2) + rng.uniform(-0.2, 0.2, (2, 2))
            shift = rng.uniform(-0.5, 0.5, 2)
            bent[i] = affine_transform(image, matrix, centre - matrix @ centre + shift, order=1)
        out.append(bent)
    return np.concatenate(out), np.tile(labels, copies + 1)


def train(pixels, labels):
    x, y = augment(to_tensor(pixels)[:, 0], labels)
    # A fixed number of passes. These settings were chosen by 4-fold
    # cross-validation inside the training set; the held-out set had no part.
    net = MLPClassifier(
        (256, 128), alpha=0.1, batch_size=256, max_iter=25, tol=0, random_state=SEED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it stops at max_iter by design
        net.fit(x.reshape(len(x), -1), y)
    return list(zip(net.coefs_, net.intercepts_))


def to_onnx(layers):
    """Flatten, then Gemm + Relu per layer, with Softmax in place of the last Relu."""
    nodes = [helper.make_node("Flatten", ["image"], ["x0"], axis=1)]
    weights = []
    for i, (weight, bias) in enumerate(layers, start=1):
        for name, value in ((f"w{i}", weight), (f"b{i}", bias)):
            weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        nodes.append(helper.make_node("Gemm", [f"x{i - 1}", f"w{i}", f"b{i}"], [f"z{i}"]))
        if i < len(layers):
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"x{i}"]))
        else:
            nodes.append(helper.make_node("Softmax", [f"z{i}"], ["scores"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    # Old enough for every runtime in use, new enough for an axis-wise Softmax.
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def predict(model, pixels):
    """Run the exported bytes, so that the figure is the artefact's, not the trainer's."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"image": to_tensor(pixels)})[0]


def report(scores, labels):
    right = int((scores.argmax(axis=1) == labels).sum())
    print(f"held-out accuracy: {right / len(labels):.2%} ({right}/{len(labels)})")
    return right / len(labels) >= MIN_ACCURACY


def manifest_for(model):
    image = {"width": 8, "height": 8, "mode": "gray", "scale": SCALE, "offset": OFFSET}
    manifest = {
        "name": "digits",
        "version": "1.0.0",
        "task": "image-classification",
        "description": "Handwritten digits 0-9 from 8x8 gray images, bright ink on a dark ground.",
        "licence": "MIT OR Apache-2.0",
        "format": "onnx",
        "entry": "model.onnx",
        "files": [
            {
                "path": "model.onnx",
                "bytes": len(model),
                "sha256": hashlib.sha256(model).hexdigest(),
            }
        ],
        "inputs": [
            {
                "type": "tensor",
                "name": "image",
                "dtype": "f32",
                "shape": ["batch", 1, 8, 8],
                "from": {"image": image},
            }
        ],
        "outputs": [
            {
                "type": "tensor",
                "name": "scores",
                "dtype": "f32",
                "shape": ["batch", 10],
                "to": {"labels": LABELS},
            }
        ],
        "limits": {"memory_bytes": 268435456, "deadline_ms": 5000},
        "price": "10000000000000000",
    }
    return (json.dumps(manifest, indent=2) + "\n").encode()


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")  # uint8 [h,w] is 8-bit grayscale
    return out.getvalue()


def main_train():
    (train_x, train_y), (held_x, held_y) = load()
    model = to_onnx(train(train_x, train_y))
    scores = predict(model, held_x)
    if not report(scores, held_y):
        return f"held-out accuracy is below {MIN_ACCURACY:.0%}; nothing written"

    # For each digit the first held-out image that the model is sure about.
    samples = {}
    for digit in range(10):
        sure = np.flatnonzero((held_y == digit) & (scores[:, digit] > MIN_SAMPLE_SCORE))
        if not len(sure):
            return f"no held-out {digit} scores above {MIN_SAMPLE_SCORE}; nothing written"
        samples[digit] = held_x[sure[0]]

    MODEL.write_bytes(model)
    MANIFEST.write_bytes(manifest_for(model))
    SAMPLES.mkdir(parents=True, exist_ok=True)
    for digit, pixels in samples.items():
        (SAMPLES / f"{digit}.png").write_bytes(png(pixels))


def main_check():
    _, (held_x, held_y) = load()
    model = MODEL.read_bytes()
    if not report(predict(model, held_x), held_y):
        return f"held-out accuracy is below {MIN_ACCURACY:.0%}"
    if MANIFEST.read_bytes() != manifest_for(model):
        return "manifest.json is not the one that train.py writes for this model.onnx"

    for digit in range(10):
        with Image.open(SAMPLES / f"{digit}.png") as image:
            mode, pixels = image.mode, np.asarray(image)
        if mode != "L" or pixels.shape != (8, 8):
            return f"{digit}.png is not an 8x8 8-bit grayscale image"
        if not (held_x[held_y == digit] == pixels).all(axis=(1, 2)).any():
            return f"{digit}.png is not a held-out image of a {digit}"
        score = predict(model, pixels[None])[0, digit]
        if score <= MIN_SAMPLE_SCORE:
            return f"{digit}.png scores only {score:.4f}"
        print(f"{digit}.png: {score:.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train or check the digits model package.")
    parser.add_argument("--check", action="store_true", help="write nothing; check the files")
    # A returned message goes to standard error with exit status 1; None is 0.
    sys.exit(main_check() if parser.parse_args().check else main_train())
