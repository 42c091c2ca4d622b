"""One file for each form that ONNX Runtime lacks: spelt in standard ops that it runs exactly, on a copy."""
