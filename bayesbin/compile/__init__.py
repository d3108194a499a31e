"""From torch networks to programs, and from programs to torch, ONNX and C."""
