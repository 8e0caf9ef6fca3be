"""Files that other programs run: ONNX and Core ML; how long they take. Start with `onnx`."""
