"""The lines of Python that run the ONNX graphs, from an image file and texts to vectors."""

from __future__ import annotations

from collections.abc import Sequence

from medvlp_core.spec.roles import Role
from medvlp_core.training.checkpoint import LoadedRun

#: How transformers' tokenizer gives what a graph takes.
_TOKENS = {
    "token_ids": 'tokens["input_ids"].astype("int64")',
    "text_is_valid": 'tokens["attention_mask"].astype(bool)',
    "word_ids": 'numpy.array(words, dtype="int64")',
}


def joined(snippets: Sequence[str]) -> str:
    """One program, with the imports that its parts need."""
    code = "\n\n".join(snippets)
    imports = {
        "import numpy": "numpy.",
        "import onnxruntime": "onnxruntime.",
        "from PIL import Image, ImageOps": "ImageOps.",
        "from transformers import AutoTokenizer": "AutoTokenizer.",
    }
    return "\n".join([*(line for line, use in imports.items() if use in code), "", code])


def image_snippet(loaded: LoadedRun, outputs: Sequence[str]) -> str:
    """From an image file to the outputs of the image graph."""
    inputs, geometry = loaded.plan.inputs, loaded.image_transform().geometry
    size = f"({geometry.width}, {geometry.height})"
    return (
        f'film = Image.open("film.png").convert("L")  # your image, of 8 bits\n'
        f"film = ImageOps.fit(film, {size}, Image.Resampling.BILINEAR)\n"
        f'gray = numpy.asarray(film, dtype="float32") / 255\n'
        f"images = numpy.tile((gray - {inputs.mean}) / {inputs.std}, (1, {geometry.channels}, 1, 1))\n"
        f'session = onnxruntime.InferenceSession("image_encoder.onnx")\n'
        f'{_targets(outputs)} = session.run(None, {{"image": images}})'
    )


def text_snippet(loaded: LoadedRun, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """From texts to the outputs of the text graph, which takes ``inputs``."""
    encoder = loaded.plan.one(Role.TEXT_ENCODER)
    longest = loaded.plan.dims(encoder.path).get("L") if encoder is not None else None
    limit = f", max_length={longest}" if longest is not None else ""
    lines = [
        'texts = ["The lungs are clear.", "Pneumonia."]',
        'tokenizer = AutoTokenizer.from_pretrained("tokenizer")',
        f'tokens = tokenizer(texts, padding=True, truncation=True{limit}, return_tensors="np")',
    ]
    if "word_ids" in inputs:
        lines.append("words = [[-1 if word is None else word for word in tokens.word_ids(row)] for row in range(len(texts))]")
    given = [f'    "{name}": {_TOKENS[name]},' for name in inputs]
    call = f"{_targets(outputs)} = session.run(None, inputs)"
    return "\n".join([*lines, "inputs = {", *given, "}", 'session = onnxruntime.InferenceSession("text_encoder.onnx")', call])


def _targets(outputs: Sequence[str]) -> str:
    return ", ".join(outputs) if len(outputs) > 1 else f"({outputs[0]},)"
