"""Trained models for other libraries: ``medvlp export RUN --to KIND --out FOLDER``. This module is light."""

#: What a run can be exported to, and what comes of it.
KINDS: dict[str, str] = {
    "timm": "the image encoder, for timm.create_model(..., checkpoint_path=...)",
    "transformers": "the text encoder and its tokenizer, for AutoModel and AutoTokenizer.from_pretrained",
    "safetensors": "all weights under their names in the model, with recipe and tokenizer",
    "onnx": "both encoders as ONNX graphs, with the vectors of the shared space where there is one",
}
