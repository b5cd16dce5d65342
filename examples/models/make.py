#!/usr/bin/env python3
"""Make the model packages here, or check the committed ones.

    python make.py           train; write weights.npy and both manifests
    python make.py --check   write nothing; re-evaluate what is committed

Needs what ncn-node/models/digits/requirements.txt lists.
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
NUMPY = HERE / "digits-numpy"
RUNTIME = HERE / "digits-onnxruntime"
DIGITS = HERE.parents[1] / "ncn-node" / "models" / "digits"
MIN_ACCURACY = 0.94


def data():
    """The data set as 8-bit pixels, split into (train, held-out) as that of `digits` is."""
    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return train_test_split(
        (pixels / 255).astype(np.float32), digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )


def train(images, labels):
    model = LogisticRegression(C=1.0, max_iter=1_000).fit(images.reshape(len(images), -1), labels)
    return np.vstack([model.coef_.T, model.intercept_]).astype(np.float32)


def accuracy(weights, images, labels):
    """By the package's own module."""
    sys.path.insert(0, str(NUMPY))
    sys.dont_write_bytecode = True
    import model

    model.weights = weights
    scores = model.infer({"image": images[:, None]})["scores"]
    return (scores.argmax(axis=1) == labels).mean()


def manifest(name, description, files):
    """That of `digits`, but for what is run and by what."""
    digits = json.loads((DIGITS / "manifest.json").read_bytes())
    listed = [{"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()]
    changes = {"name": name, "description": description, "format": "python", "entry": "model.py", "files": listed}
    return (json.dumps(digits | changes, indent=2) + "\n").encode()


def manifests(weights):
    module = (NUMPY / "model.py").read_bytes()
    yield NUMPY / "manifest.json", manifest(
        "digits-numpy",
        "Handwritten digits 0-9 from 8x8 gray images, by softmax regression in numpy.",
        {"model.py": module, "weights.npy": weights},
    )
    files = {
        "model.py": (RUNTIME / "model.py").read_bytes(),
        "model.onnx": (DIGITS / "model.onnx").read_bytes(),
    }
    yield RUNTIME / "manifest.json", manifest(
        "digits-onnxruntime", "The digits model, run by ONNX Runtime from Python.", files
    )


def main():
    train_images, held_images, train_labels, held_labels = data()
    check = sys.argv[1:] == ["--check"]
    path = NUMPY / "weights.npy"
    if check:
        weights = np.load(path)
    else:
        weights = train(train_images, train_labels)
    right = accuracy(weights, held_images, held_labels)
    print(f"held-out accuracy: {right:.2%}")
    if right < MIN_ACCURACY:
        return f"held-out accuracy is below {MIN_ACCURACY:.0%}"
    if not check:
        out = io.BytesIO()
        np.save(out, weights)
        path.write_bytes(out.getvalue())
    for file, wanted in manifests(path.read_bytes()):
        if not check:
            file.write_bytes(wanted)
        elif file.read_bytes() != wanted:
            return f"{file} is not the one that make.py writes"


if __name__ == "__main__":
    sys.exit(main())
